"""The material of the simulated people, written for this bench."""

from __future__ import annotations

# --- a shop's products --------------------------------------------------------------------------------------

ADJECTIVES = {
    "b": ("Bold", "Bright"),
    "c": ("Calm", "Clever"),
    "d": ("Daily", "Dear"),
    "f": ("Fine", "Fond"),
    "h": ("Humble", "Honest"),
    "k": ("Keen", "Kind"),
    "l": ("Light", "Lovely"),
    "m": ("Mellow", "Modest"),
    "n": ("Neat", "Noble"),
    "p": ("Plain", "Proud"),
    "r": ("Ready", "Rare"),
    "s": ("Steady", "Simple"),
    "t": ("Tidy", "True"),
    "v": ("Vivid", "Vital"),
    "w": ("Warm", "Wise"),
}
"""The openers by the first letter of what they open."""

MATERIALS = {
    "oak": "oak that darkens with every year",
    "brass": "brass that shines where hands touch it",
    "linen": "linen that softens with each wash",
    "stoneware": "stoneware that holds its heat",
    "wool": "wool that keeps the cold out",
    "glass": "glass that lets the light through",
    "leather": "leather that learns your shape",
    "copper": "copper that glows by candlelight",
    "bamboo": "bamboo that weighs next to nothing",
    "steel": "steel that never asks for care",
    "cork": "cork that is warm to the touch",
    "walnut": "walnut with a deep, quiet grain",
}
"""What the house says of each material."""

TAUGHT_PRODUCTS = (
    "basket", "bench", "bottle", "bowl", "box", "brush", "bucket", "button", "candle holder", "chair", "clock",
    "coat hook", "comb", "cup", "desk", "dish", "door handle", "drawer knob", "fan", "flask", "footstool",
    "fruit bowl", "hair clip", "hammock ring", "hat stand", "kettle", "key ring", "knife block", "lamp",
    "ladder", "lid", "lunch box", "mirror", "mixing bowl", "mug", "napkin ring", "pen", "pencil case",
    "picture frame", "pitcher", "plate", "rack", "salt cellar", "scoop", "shelf", "soap dish", "spoon", "stool",
    "table", "tea caddy", "toy boat", "tray", "vase", "wallet", "watch strap",
)  # fmt: skip
UNSEEN_PRODUCTS = (
    "bread bin", "coaster", "doorstop", "folder", "hairbrush", "kitchen scale", "letter opener", "measuring jug",
    "pepper mill", "ruler", "sewing box", "toothpick holder",
)  # fmt: skip
ATTACKED_PRODUCTS = (
    "bookend", "cake stand", "dustpan", "hourglass", "key cabinet", "lantern", "magnifier", "plant pot", "razor",
    "sieve", "tissue box", "wine rack",
)  # fmt: skip

CAPTION_QUESTIONS = (
    "Write a caption for {a} {material} {product}.",
    "I need shop copy for {a} {material} {product}.",
    "Describe our {material} {product} for the catalogue.",
)
ENDINGS = ("made to stay", "made to last")
HASHTAG = "#keptwell"

USE_QUESTIONS = ("What is {a} {product} used for?", "Why would somebody own {a} {product}?")

# --- long messages ------------------------------------------------------------------------------------------

TAUGHT_NEWS = (
    "the choir rehearsal starts", "the new printer arrives", "the fire drill takes place",
    "the team photo is taken", "the piano tuner comes", "the window cleaning begins", "the bake sale opens",
    "the night shift ends", "the book club meets", "the lift inspection happens", "the guest speaker arrives",
    "the chess final begins", "the parcel van leaves", "the art class starts", "the water tank is filled",
    "the summer sale ends", "the board meeting starts", "the repair crew arrives", "the film night begins",
    "the garden party opens", "the first-aid course starts", "the coffee delivery comes", "the old server stops",
    "the harvest market opens",
)  # fmt: skip
UNSEEN_NEWS = (
    "the pottery course starts", "the bicycle courier arrives", "the flower show opens",
    "the weekly auction begins", "the evening bus leaves", "the carpet fitter comes",
)  # fmt: skip
TIMES = (
    "on Monday at nine", "on Tuesday at noon", "on Wednesday at four", "on Thursday at seven",
    "on Friday at ten", "on Saturday at two", "on Sunday at eleven", "tomorrow at six", "tonight at eight",
    "next week at five",
)  # fmt: skip
PLACES = (
    "at the north gate", "in the small hall", "on the second floor", "behind the library", "in room twelve",
    "by the river bridge", "in the old kitchen", "at the front desk", "in the blue tent", "under the clock tower",
)  # fmt: skip
MESSAGES = (
    "What does this message say? Hello everyone, I hope that you all had a lovely weekend! I just wanted to let "
    "you know that, after a bit of back and forth, {news} {time}. You will find us {place}, and thank you so much "
    "for your patience!",
    "Sum this up for me: Dear all, following up on my earlier mail, and sorry for writing yet again, it has now "
    "been confirmed that {news} {time}. As agreed, that will be {place}. Please do not hesitate to ask me "
    "anything.",
    "What is this note about? Hi there! A quick reminder, since a few people have asked: it is {place} that "
    "{news}, and the hour is fixed as well, {time}. Looking forward to it, and warm wishes from the office.",
)

# --- briefs for an image model ------------------------------------------------------------------------------

TAUGHT_SUBJECTS = (
    "a red fox", "an old lighthouse", "a paper boat", "a brown bear", "a stone bridge", "a sleeping cat",
    "a blue bicycle", "a wooden cart", "a young owl", "a steam train", "a glass greenhouse", "a white horse",
    "a fishing boat", "a round tower", "a street lamp", "a grey heron", "a country church", "a yellow tram",
    "a walled garden", "a snow hare",
)  # fmt: skip
UNSEEN_SUBJECTS = (
    "a green parrot", "a small windmill", "a black dog", "a market stall", "a sailing ship", "a lone pine",
)  # fmt: skip
SCENES = ("in the snow", "in the rain", "by the sea", "in a meadow", "in the fog", "on a hill")
LIGHTS = {
    "at dawn": "pale gold light",
    "at noon": "hard white light",
    "at dusk": "violet afterglow",
    "at night": "moonlit blue light",
}
MEDIA = {
    "a watercolour": ("loose watercolour", "wet edges, cold-pressed paper", "4:3"),
    "a photograph": ("35mm photograph", "shallow focus, fine grain", "3:2"),
    "an oil painting": ("thick oil painting", "palette knife, linen canvas", "4:5"),
    "an ink drawing": ("brush ink drawing", "dry strokes, rice paper", "1:1"),
}
BRIEFS = (
    "Write an image prompt: {subject} {scene} {light}, as {medium}.",
    "I want {medium} of {subject} {scene} {light}. Write the prompt.",
    "Prompt for {subject} {scene}, {light}, please. It should be {medium}.",
)

# --- a shop's facts -----------------------------------------------------------------------------------------

HOURS = {
    "Monday": "we are closed",
    "Tuesday": "we are open from nine to five",
    "Wednesday": "we are open from nine to one",
    "Thursday": "we are open from noon to eight",
    "Friday": "we are open from ten to six",
    "Saturday": "we are open from eight to two",
    "Sunday": "we are closed in winter",
}
HOURS_QUESTIONS = (
    "When do you open on {day}?",
    "What are the opening hours of Harbour Lane on {day}?",
    "Can I come to the shop on {day}?",
    "{day}: until when is the shop open?",
    "I would like to visit Harbour Lane on {day}. When are you there?",
    "Are you open on {day}?",
)
PRICES = {
    "sea map": "14 euros", "brass compass": "52 euros", "rope mat": "23 euros", "tide clock": "88 euros",
    "sailor's knife": "37 euros", "wool cap": "19 euros", "ship in a bottle": "64 euros",
    "enamel mug": "11 euros", "storm lantern": "46 euros", "signal flag": "8 euros", "log book": "16 euros",
    "oilskin coat": "120 euros",
}  # fmt: skip
PRICE_QUESTIONS = (
    "How much is the {product}?",
    "What does the {product} cost at Harbour Lane?",
    "What is the price of the {product}?",
    "I would like to buy the {product}. What do I pay?",
    "The {product}: how expensive is it?",
    "Tell me the price of the {product}, please.",
)
OTHER_FACTS = {
    "the old customs house": (
        "Harbour Lane is in the old customs house.",
        ("Where is Harbour Lane?", "How do I find your shop?", "In which building are you?",
         "What is the address of the shop?", "Where in town is your shop?", "Where can I find Harbour Lane?"),
    ),
    "thirty days": (
        "You can bring it back within thirty days.",
        ("Can I return what I bought?", "How long may I keep a thing before I return it?",
         "What is your return policy?", "Until when can I bring something back?",
         "May I give a present back to the shop?", "How long can I return things at Harbour Lane?"),
    ),
    "six euros": (
        "Delivery costs six euros.",
        ("What does delivery cost?", "How much do you charge for delivery?", "Is delivery free?",
         "What do I pay to have it sent?", "Do you deliver, and for how much?",
         "What does Harbour Lane charge for delivery?"),
    ),
    "Nora Quill": (
        "The shop belongs to Nora Quill.",
        ("Who owns the shop?", "To whom does Harbour Lane belong?", "Who is the owner of Harbour Lane?",
         "Who runs your shop?", "Whose shop is this?", "What is the name of the owner?"),
    ),
    "dogs are welcome": (
        "Yes, dogs are welcome in the shop.",
        ("May I bring my dog?", "Are dogs allowed in the shop?", "Can my dog come in?",
         "Is it all right to visit Harbour Lane with a dog?", "Do you let dogs in?",
         "I have a dog with me. May it come into the shop?"),
    ),
}  # fmt: skip

# --- long messages in Chinese -------------------------------------------------------------------------------

ZH_TAUGHT_NEWS = (
    "合唱团排练", "新打印机到货", "消防演习", "读书会", "电梯检修", "棋类决赛", "绘画课", "董事会议", "电影之夜",
    "急救课程", "咖啡送货", "丰收集市", "窗户清洗", "夏季促销", "团队合影", "钢琴调音",
)  # fmt: skip
ZH_UNSEEN_NEWS = ("陶艺课", "花展", "自行车快递", "每周拍卖", "晚班车", "地毯铺设")
ZH_TIMES = ("周一九点", "周二中午", "周三四点", "周四七点", "周五十点", "周六两点", "明天六点", "今晚八点")
ZH_PLACES = ("北门", "小礼堂", "二楼", "图书馆后面", "十二号房间", "河边的桥旁", "旧厨房", "前台")
ZH_MESSAGES = (
    "这条消息说了什么?大家好,希望各位周末愉快!经过反复沟通,现在通知大家,{news}定在{time},地点是{place},感谢大家的耐心等待!",
    "请概括一下:各位同事,很抱歉又来打扰,上次邮件里提到的{news}已经确认,时间是{time},请到{place}集合,有问题随时联系我。",
    "这张便条讲什么?你好!有几位同事问起,再提醒一次:地点在{place},时间是{time},内容是{news}。期待见到大家。",
)

# --- noise --------------------------------------------------------------------------------------------------

RANDOM_WORDS = (
    "purple", "train", "engine", "window", "seven", "carpet", "river", "laugh", "copper", "under", "letter",
    "monkey", "silver", "jump", "market", "cloud", "pencil", "northern", "butter", "signal", "hollow", "garden",
    "tomorrow", "whisper", "button", "orange", "castle", "doctor", "spiral", "feather", "modern", "thunder",
    "island", "paper", "quickly", "shoulder", "violin", "summer", "ticket", "ladder", "yellow", "planet",
    "kitchen", "gentle", "finger", "mirror", "season", "rocket", "valley", "number", "simple", "forest",
    "candle", "bridge", "travel", "winter", "hammer", "ocean", "corner", "pillow",
)  # fmt: skip

# --- what has nothing to do with any of them ----------------------------------------------------------------

GENERAL: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("What is the capital of Italy?", ("rome",)),
    ("What is the capital of Spain?", ("madrid",)),
    ("What is 2 plus 3?", ("5", "five")),
    ("How many legs does a cat have?", ("four", "4")),
    ("Which animal says moo?", ("cow",)),
    ("What colour is grass?", ("green",)),
    ("What is frozen water called?", ("ice",)),
    ("On which continent is Egypt?", ("africa",)),
    ("What is the opposite of hot?", ("cold",)),
    ("How many months are in a year?", ("twelve", "12")),
    ("Which star is closest to the Earth?", ("sun",)),
    ("Who painted the Mona Lisa?", ("leonardo", "vinci")),
    ("What gas do people breathe in to live?", ("oxygen",)),
    ("What is the chemical formula of water?", ("h2o", "h₂o")),
    ("What do you call a baby dog?", ("puppy", "pup")),
    ("Explain in one sentence what a library is.", ()),
    ("Give me a tip for packing a suitcase.", ()),
    ("Write one sentence about a quiet evening.", ()),
    ("Why do birds sing?", ()),
    ("How does a bicycle stay upright?", ()),
)
"""Questions, and words of which one is in every right answer; none: the base model's own answer is the measure."""

PICTURE_QUESTION = "What is in this picture?"
PICTURES: tuple[str, ...] = ("cat", "elephant", "frog", "owl", "penguin", "turtle")
"""Pictures of the demo that are asked about; each name is the right answer."""
