"""The English and Chinese words for kinds, colours, numbers and directions.

Read by ``talk.py`` and ``tell.py`` to build sentences.
"""

NOUNS_EN = {
    "sheep": ("sheep", "sheep"),
    "ball": ("ball", "balls"),
    "car": ("car", "cars"),
    "tree": ("tree", "trees"),
    "apple": ("apple", "apples"),
    "fish": ("fish", "fish"),
    "star": ("star", "stars"),
    "house": ("house", "houses"),
    "flower": ("flower", "flowers"),
    "boat": ("boat", "boats"),
}
NOUNS_ZH = {  # (measure word, noun)
    "sheep": ("只", "羊"),
    "ball": ("个", "球"),
    "car": ("辆", "汽车"),
    "tree": ("棵", "树"),
    "apple": ("个", "苹果"),
    "fish": ("条", "鱼"),
    "star": ("颗", "星星"),
    "house": ("座", "房子"),
    "flower": ("朵", "花"),
    "boat": ("艘", "船"),
}
COLOURS_ZH = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "white": "白色",
    "black": "黑色",
}
NUMBERS_EN = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS_ZH = ("零", "一", "两", "三", "四", "五", "六", "七", "八", "九")
DIRECTIONS_EN = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
DIRECTIONS_ZH = {"left": "向左", "right": "向右", "up": "向上", "down": "向下"}
PLACES_EN = {
    "top left": "at the top left",
    "top": "at the top",
    "top right": "at the top right",
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "bottom left": "at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "at the bottom right",
}
PLACES_ZH = {
    "top left": "在左上方",
    "top": "在上方",
    "top right": "在右上方",
    "left": "在左边",
    "middle": "在中间",
    "right": "在右边",
    "bottom left": "在左下方",
    "bottom": "在下方",
    "bottom right": "在右下方",
}
SIDES = {
    "left": ("to the left of", "左边"),
    "right": ("to the right of", "右边"),
    "above": ("above", "上面"),
    "below": ("below", "下面"),
}


def article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def noun(kind: str, count: int, lang: str) -> str:
    """The bare noun; Chinese has no plural."""
    return NOUNS_EN[kind][count != 1] if lang == "en" else NOUNS_ZH[kind][1]


def group_phrase(kind: str, colour: str, count: int, lang: str) -> str:
    """``two red apples`` or its Chinese."""
    if lang == "en":
        return f"{NUMBERS_EN[count]} {colour} {noun(kind, count, lang)}"
    return f"{NUMBERS_ZH[count]}{NOUNS_ZH[kind][0]}{COLOURS_ZH[colour]}的{NOUNS_ZH[kind][1]}"


def join(phrases: list[str], lang: str) -> str:
    """``a, b and c`` or its Chinese."""
    last = " and " if lang == "en" else "和"
    comma = ", " if lang == "en" else "、"
    if len(phrases) < 2:
        return "".join(phrases)
    return comma.join(phrases[:-1]) + last + phrases[-1]
