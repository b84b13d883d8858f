"""The questions about each ability, phrased in many ways; ``{s}`` and its like are filled in.

``talk.py`` and ``tell.py`` choose among them. Letters: ``s`` a noun in the plural or singular,
``a`` the noun with its article, ``n`` the bare noun, ``m`` the Chinese measure word, ``o`` another
noun.
"""

COUNT_EN = (
    "How many {s} are there in the picture?",
    "How many {s} are there in the picture?",
    "How many {s} are there?",
    "How many {s} are in the picture?",
    "How many {s} are in the image?",
    "How many {s} are there in this image?",
    "How many {s} do you see?",
    "How many {s} can you see in the picture?",
    "How many {s} does the picture show?",
    "How many {s}?",
    "Count the {s}.",
    "Count the {s} in the picture.",
    "What is the number of {s}?",
    "Tell me how many {s} there are.",
)
COUNT_ZH = (
    "图中有几{m}{n}？",
    "图中有几{m}{n}？",
    "图中有多少{m}{n}？",
    "图片中有几{m}{n}？",
    "图片里有多少{m}{n}？",
    "这张图片中有几{m}{n}？",
    "这张图里有多少{n}？",
    "画面中有几{m}{n}？",
    "图里一共有几{m}{n}？",
    "有几{m}{n}？",
    "有多少{m}{n}？",
    "数一数图中的{n}。",
    "图中{n}的数量是多少？",
    "请问图中有几{m}{n}？",
)
COLOUR_EN = (
    "What colour {v} the {s}?",
    "What color {v} the {s}?",
    "What colour {v} the {s} in the picture?",
    "What color {v} the {s} in the image?",
    "Which colour {v} the {s}?",
    "What is the color of the {s}?",
    "What is the colour of the {s}?",
    "Tell me the colour of the {s}.",
)
COLOUR_ZH = (
    "{n}是什么颜色？",
    "{n}是什么颜色的？",
    "图中的{n}是什么颜色？",
    "图片里的{n}是什么颜色的？",
    "{n}的颜色是什么？",
    "图中{n}是什么颜色？",
    "请问{n}是什么颜色？",
    "这{m}{n}是什么颜色的？",
)
DESCRIBE_EN = (
    "Describe the picture.",
    "Describe this picture.",
    "Describe the image.",
    "Describe this image.",
    "Please describe this image in detail.",
    "What is in the picture?",
    "What is in this image?",
    "What's in this image?",
    "What do you see?",
    "What can you see in the picture?",
    "What does the picture show?",
    "Tell me about the picture.",
)
DESCRIBE_ZH = (
    "请描述这张图片。",
    "请描述这张图片",
    "描述一下这张图片。",
    "请描述一下这张图。",
    "请描述图片内容",
    "请描述下图片内容",
    "描述图片。",
    "图中有什么？",
    "图片里有什么？",
    "图中描绘的是什么景象？",
    "你看到了什么？",
    "这张图片里有哪些东西？",
)
KINDS_EN = ("Which kinds of things are there?", "What kinds of things are in the picture?")
KINDS_ZH = ("图中有哪几种东西？", "图片里有哪些种类的东西？")
PRESENT_EN = ("Is there {a} in the picture?", "Are there any {p} in the picture?", "Are there {p}?")
PRESENT_ZH = ("图中有{n}吗？", "图片里有没有{n}？", "有{n}吗？")
CLIP_EN = (
    "Describe the video.",
    "Describe this video.",
    "Please describe the video.",
    "Describe the clip.",
    "What happens in the video?",
    "What happens?",
    "What is happening in the clip?",
    "What does the video show?",
    "Tell me about the video.",
)
CLIP_ZH = (
    "请描述下视频内容",
    "请描述下视频内容。",
    "请描述视频内容。",
    "请描述一下视频内容。",
    "描述一下这个视频。",
    "视频里发生了什么？",
    "视频中有什么？",
    "这段视频讲了什么？",
    "请描述这个视频",
)
MOVES_EN = ("What moves?", "What is moving?", "What moves in the video?", "Which thing is moving?")
MOVES_ZH = ("什么在动？", "什么东西在动？", "视频里什么在移动？", "视频中什么在动？")
WAY_EN = (
    "Which way does the {n} move?",
    "Which way is the {n} moving?",
    "In which direction does the {n} move?",
    "Where does the {n} go?",
    "Which way does it move?",
)
WAY_ZH = (
    "{n}向哪个方向移动？",
    "{n}往哪边移动？",
    "{n}朝哪个方向动？",
    "视频里的{n}往哪里走？",
    "它向哪个方向移动？",
)
MOVER_EN = ("What colour is the {n}?", "What color is the {n}?", "What colour is the moving thing?")
MOVER_ZH = ("{n}是什么颜色？", "{n}是什么颜色的？", "移动的东西是什么颜色？")
WHERE_EN = (
    "Where is the {n}?",
    "Where is the {n} in the picture?",
    "In which part of the picture is the {n}?",
    "Where in the image is the {n}?",
    "Tell me where the {n} is.",
)
WHERE_ZH = (
    "{n}在哪里？",
    "{n}在图中的什么位置？",
    "图中的{n}在哪里？",
    "{n}在画面的哪个位置？",
    "请问{n}在什么地方？",
)
SIDES_EN = (
    "Is the {n} to the left or to the right of the {o}?",
    "Is the {n} left or right of the {o}?",
    "On which side of the {o} is the {n}, left or right?",
)
SIDES_ZH = ("{n}在{o}的左边还是右边？", "{n}在{o}的左面还是右面？", "{n}位于{o}的左边还是右边？")
LEVELS_EN = (
    "Is the {n} above or below the {o}?",
    "Is the {n} higher or lower than the {o}?",
    "Does the {n} lie above or below the {o}?",
)
LEVELS_ZH = ("{n}在{o}的上面还是下面？", "{n}在{o}的上方还是下方？", "{n}比{o}高还是低？")
BOX_EN = (
    "Which digit belongs in the box?",
    "What number is in the box?",
    "Which number should be in the marked box?",
    "What is the digit in the marked box?",
    "Which digit should be in the box?",
    "What number goes into the box?",
    "Answer in English: which number should stand in the box in the picture?",
    "Fill in the box.",
)
BOX_ZH = (
    "使用中文回答，图中方框处应该是数字多少?",
    "使用中文回答，图中方框处应该是数字多少？",
    "图中方框处应该是数字多少？",
    "图中方框处应该是数字多少",
    "方框里应该填什么数字？",
    "方框处的数字是多少？",
    "图中方框里的数字是几？",
    "方框里应该是几？",
    "请问方框中应该是哪个数字？",
)
READ_EN = (
    "What is written in the picture?",
    "What does the sign say?",
    "Read the text in the picture.",
    "Read the text.",
    "What does it say?",
    "Which {w} is in the picture?",
    "What {w} do you see?",
    "Read the {w} in the picture.",
    "Read the {w} aloud.",
    "What is the {w} in the image?",
)
READ_ZH = (
    "图中写着什么？",
    "图中写了什么？",
    "图中的{w}是什么？",
    "读出图片中的{w}",
    "图片中的{w}是什么？",
    "请读出图中的{w}。",
    "上面写的是什么？",
    "识别图中的{w}",
)
FIRST_EN = ("What happens first?", "What happens first in the video?", "What is the first thing?")
FIRST_ZH = ("先发生了什么？", "视频里首先发生了什么？", "一开始发生了什么？", "首先发生什么？")
LAST_EN = ("What happens last?", "What happens then?", "What happens at the end of the video?")
LAST_ZH = ("后来发生了什么？", "视频最后发生了什么？", "然后发生了什么？", "最后发生什么？")
MORE_EN = (
    "Which picture has more {s}?",
    "Which picture shows more {s}?",
    "In which picture are there more {s}?",
    "Compare the number of {s} in the two pictures.",
    "Where are more {s}, in the first or in the second picture?",
)
MORE_ZH = (
    "哪张图里的{n}更多？",
    "哪一张图片中的{n}更多？",
    "两张图中哪张的{n}多？",
    "比较两张图中{n}的数量。",
    "第一张图和第二张图，哪张{n}更多？",
)
IN_EN = ("How many {s} are in the {th} picture?", "How many {s} does the {th} picture show?")
IN_ZH = ("{th}张图中有几{m}{n}？", "{th}张图里有多少{n}？")
