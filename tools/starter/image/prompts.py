"""The forty prompts of the contact sheet, which the denoiser sees most."""

PROMPTS = (
    *("red apple", "banana", "pizza", "hamburger", "strawberry", "watermelon", "carrot", "mushroom"),
    *("ice cream", "birthday cake", "cat", "dog", "fox", "lion", "panda", "penguin"),
    *("owl", "frog", "fish", "crab", "octopus", "butterfly", "elephant", "turtle"),
    *("tulip", "sunflower", "cactus", "evergreen tree", "red heart", "grinning face", "robot", "ghost"),
    *("house", "rocket", "airplane", "automobile", "sailboat", "sun", "guitar", "umbrella, 3d"),
)
