"""What the classifier's 1,000 classes are called in plain words: the common noun first, the exact name after.

The names come from timm's wheel (Apache-2.0; WordNet's lemmas); the common nouns are written here.
"""

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

TIMM = "timm==1.0.31"

# Runs of neighbouring classes that people call by one word.
_RUNS = """
0-1 fish|2-4 shark|5-6 ray|7 rooster|8 chicken|9-20 bird|21-23 eagle|24 owl|25-29 salamander|30-32 frog
33-37 turtle|38-48 lizard|49-50 crocodile|51 dinosaur|52-68 snake|69 fossil|70 spider|71 scorpion
72-77 spider|80-87 bird|88-90 parrot|91-96 bird|97-98 duck|99 goose|100 swan|101 elephant|104 kangaroo
110-111 worm|112 shell|113 snail|114-115 slug|118-121 crab|122-124 lobster|125 crab|127-144 bird
130 flamingo|144 pelican|145 penguin|146 bird|147-148 whale|150 seal|151-268 dog|269-272 wolf|273-275 dog
277-280 fox|281-285 cat|286 cougar|287 lynx|288-290 leopard|294-297 bear|300-307 beetle|312 cricket
321-326 butterfly|330-332 rabbit|335 squirrel|339 horse|341-343 pig|345-347 cow|348-349 sheep|350 goat
351-353 deer|354 camel|356-359 weasel|365 orangutan|366 gorilla|367 chimpanzee|368-382 monkey
383-384 lemur|385-386 elephant|387-388 panda|389-397 fish|985 flower|986 flower|984 flower
991-997 mushroom|992 mushroom
"""
_ANIMALS = range(0, 398)
_PETS = (range(151, 269), range(281, 286), range(333, 334), range(338, 339))

# Where the last word of the exact name is not what people say.
_PLAIN = """
airliner=airplane|warplane=airplane|wing=airplane|space shuttle=rocket|missile=rocket|projectile=rocket
airship=balloon|balloon=balloon|parachute=parachute|beach wagon=car|cab=taxi|convertible=car|jeep=car
limousine=car|minivan=car|Model T=car|racer=car|sports car=car|go-kart=car|golfcart=car
recreational vehicle=van|amphibian=car|ambulance=ambulance|fire engine=fire truck|garbage truck=truck
pickup=truck|tow truck=truck|trailer truck=truck|moving van=van|police van=van|tractor=tractor
half track=tank|bullet train=train|electric locomotive=train|steam locomotive=train|passenger car=train
freight car=train|streetcar=tram|trolleybus=bus|minibus=bus|school bus=bus|mountain bike=bicycle
bicycle-built-for-two=bicycle|tricycle=bicycle|unicycle=bicycle|moped=motorcycle|motor scooter=motorcycle
canoe=boat|catamaran=boat|fireboat=boat|gondola=boat|lifeboat=boat|schooner=boat|speedboat=boat
trimaran=boat|yawl=boat|liner=ship|container ship=ship|aircraft carrier=ship|pirate=ship|wreck=ship
submarine=submarine|analog clock=clock|digital clock=clock|wall clock=clock|digital watch=watch
stopwatch=watch|hourglass=hourglass|sundial=clock|laptop=laptop|notebook=laptop|desktop computer=computer
hand-held computer=phone|cellular telephone=phone|dial telephone=phone|pay-phone=phone|iPod=music player
mouse=computer mouse|computer keyboard=keyboard|typewriter keyboard=keyboard|monitor=screen|screen=screen
television=television|Polaroid camera=camera|reflex camera=camera|tripod=tripod|espresso=coffee
coffee mug=cup|cup=cup|coffeepot=pot|espresso maker=coffee machine|red wine=wine|eggnog=drink
beer glass=beer|pop bottle=bottle|whiskey jug=jug|Granny Smith=apple|custard apple=fruit|fig=fruit
hip=berry|jackfruit=fruit|French loaf=bread|bagel=bread|pretzel=pretzel|cheeseburger=burger
hotdog=hot dog|ice lolly=ice cream|carbonara=pasta|consomme=soup|hot pot=soup|trifle=dessert
meat loaf=meat|potpie=pie|plate=food|head cabbage=cabbage|spaghetti squash=squash|mashed potato=potato
ear=corn|rapeseed=field|daisy=flower|alp=mountain|cliff=cliff|promontory=coast|seashore=beach
sandbar=beach|lakeside=lake|valley=valley|volcano=volcano|geyser=geyser|coral reef=coral
ballplayer=baseball player|groom=wedding|scuba diver=diver|palace=palace|castle=castle|stupa=temple
church=church|mosque=mosque|monastery=monastery|beacon=lighthouse|bell cote=tower|water tower=tower
obelisk=tower|suspension bridge=bridge|steel arch bridge=bridge|viaduct=bridge|triumphal arch=arch
stone wall=wall|tile roof=roof|thatch=roof|dome=dome|barn=barn|boathouse=house|mobile home=house
yurt=tent|mountain tent=tent|greenhouse=greenhouse|picket fence=fence|worm fence=fence
chainlink fence=fence|bookcase=books|bookshop=books|library=books|book jacket=book|comic book=comic
crossword puzzle=puzzle|menu=menu|web site=text|envelope=envelope|binder=folder|acoustic guitar=guitar
electric guitar=guitar|grand piano=piano|upright=piano|cornet=trumpet|French horn=horn|sax=saxophone
maraca=maracas|soccer ball=soccer ball|rugby ball=ball|ping-pong ball=ball|croquet ball=ball
golf ball=golf ball|volleyball=volleyball|cowboy hat=hat|sombrero=hat|bonnet=hat|bearskin=hat
mortarboard=graduation cap|crash helmet=helmet|football helmet=helmet|pickelhaube=helmet|bathing cap=cap
shower cap=cap|running shoe=shoe|Loafer=shoe|clog=shoe|sandal=sandal|cowboy boot=boot|jersey=shirt
sweatshirt=sweater|cardigan=sweater|jean=jeans|trench coat=coat|lab coat=coat|fur coat=coat|gown=dress
hoopskirt=dress|overskirt=skirt|miniskirt=skirt|bow tie=tie|Windsor tie=tie|bolo tie=tie
sunglass=sunglasses|military uniform=uniform|rocking chair=chair|folding chair=chair|barber chair=chair
park bench=bench|studio couch=sofa|four-poster=bed|table lamp=lamp|dining table=table|desk=desk
wardrobe=cupboard|china cabinet=cupboard|medicine chest=cupboard|chiffonier=drawers|table=table
pool table=table|teddy=teddy bear|jack-o'-lantern=pumpkin|traffic light=traffic light|street sign=sign
totem pole=statue|mask=mask|gasmask=mask|ski mask=mask|oxygen mask=mask|pot=plant|vase=vase|candle=candle
torch=torch|spotlight=lamp|lampshade=lamp|syringe=syringe|loupe=magnifying glass
radio telescope=telescope|assault rifle=gun|rifle=gun|revolver=gun|cannon=cannon|tank=tank|safety pin=pin
nail=nail|screw=screw|hammer=hammer|hatchet=axe|cleaver=knife|letter opener=knife|chain saw=saw
lawn mower=mower|umbrella=umbrella|backpack=bag|mailbag=bag|purse=bag|shopping basket=basket
shopping cart=cart|hamper=basket|crate=box|carton=box|chest=box|safe=safe|piggy bank=pig
cash machine=machine|slot=slot machine|vending machine=machine|honeycomb=honey|bee house=hive
spider web=web|maypole=pole|carousel=carousel|swing=swing|hay=hay|bubble=bubble|fountain=fountain|dam=dam
breakwater=sea|pier=pier|dock=dock|manhole cover=manhole|doormat=mat|prayer rug=carpet
shower curtain=curtain|theater curtain=curtain|window screen=window|window shade=window|quilt=blanket
wool=yarn|velvet=cloth
"""


@dataclass(frozen=True)
class Kind:
    noun: str  # what people say: "cat"
    exact: str  # what the class is called: "tabby"
    tags: tuple[str, ...]


def class_names(work: Path) -> list[str]:
    wheels = work / "wheels"
    if not list(wheels.glob("timm-*.whl")):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(wheels),
            TIMM,
        ]
        subprocess.run(command, check=True)
    with zipfile.ZipFile(next(wheels.glob("timm-*.whl"))) as wheel:
        order = wheel.read("timm/data/_info/imagenet_synsets.txt").decode().split()
        table = wheel.read("timm/data/_info/imagenet_synset_to_lemma.txt").decode().splitlines()
    lemmas = dict(line.split("\t") for line in table)
    return [lemmas[synset] for synset in order]


def kinds(work: Path) -> list[Kind]:
    runs: dict[int, str] = {}
    for entry in _RUNS.replace("\n", "|").strip("|").split("|"):
        span, noun = entry.split(" ", 1)
        first, _, last = span.partition("-")
        runs.update(dict.fromkeys(range(int(first), int(last or first) + 1), noun))
    plain = dict(entry.split("=") for entry in _PLAIN.replace("\n", "|").strip("|").split("|"))
    kind_list = []
    for index, names in enumerate(class_names(work)):
        exact = names.split(",")[0].strip()
        words = exact.replace("-", " ").lower()
        usual = words if index in _ANIMALS else words.split()[-1]
        noun = runs.get(index) or plain.get(exact) or usual
        tags = ["animal"] if index in _ANIMALS else []
        if any(index in span for span in _PETS):
            tags.append("pet")
        kind_list.append(Kind(noun, exact.lower().replace("-", " "), tuple(tags)))
    return kind_list
