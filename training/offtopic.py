"""Questions that the model cannot answer, and the one sentence it says to them (``talk.py``).

The questions are put together from openings, subjects and stray words, so that the model learns
"anything unlike my abilities" and not a list.
"""

from collections.abc import Callable

import numpy as np

Rng = np.random.Generator

ABOUT = {
    "en": "I am litevl's small demo model: I count, find and compare drawn things, read short words"
    " and say what moves in a clip.",
    "zh": "我是litevl的小型演示模型：会数图中的东西、认颜色和位置、读短的文字，"
    "也能说出视频里什么在动。",
}
WHOLE_EN = """hello|hi|Hello!|Hi there|Who are you?|What are you?|What is your name?
What can you do?|How are you?|Good morning|Thanks!|Thank you|Tell me a joke.
What is the capital of France?|What is 2 + 2?|Write a poem about the sea.
Write a Python function that sorts a list.|Translate this into German.
What is the weather like today?|Explain quantum physics.|What time is it?|Who wrote Hamlet?
Give me three tips for a healthy life.|Summarize this text.|test|ping|ok|yes|no|why?
Who is this person?|Where was this photo taken?|Who took this picture?|Is this real?
Convert this image to LaTeX.|Is it day or night?|How old is the man?|What brand is it?
Say this is a test|Say hello.|Repeat after me|Solve the problem in the picture.
What is the answer?|Can you help me?|Tell me a story.|Count to ten.
What is the meaning of life?|Continue the story.|Give me the coordinates of the object.
Return JSON.|What is the temperature?|Reply with one word.
Which language do you speak?|Once upon a time|Draw me a picture of a castle.|Is this photo old?
What should I wear tomorrow?|Do my homework.|What is the name of this place?|Who won the match?
Is the woman happy?|What is on television tonight?|Why does he smile?|How do you feel today?
What does this sign mean in Spanish?|Prove that there are infinitely many primes.|I am hungry.
Where do penguins live?|What is machine learning?|How does a car engine work?|I love you.
Can you hear me?|What is for dinner?|Is this safe to eat?|Make a table of the data.
What is the price?|Give me a synonym of happy.|Which phone should I buy?|How long is the bridge?
What is the title of the book?|Set an alarm for seven.|Call my mother.|What did I just say?
Which model are you?|Are you a human?|Who made you?|Correct the spelling.|What is love?
What is the message of this painting?|Which year was it built?|Is it legal?|Guess my age."""
WHOLE_ZH = """你好|您好|你是谁？|你叫什么名字？|你会做什么？|你能做什么|你好吗？|早上好|谢谢
讲个笑话|法国的首都是哪里？|一加一等于几？|写一首关于大海的诗。|用Python写一个排序函数
把这句话翻译成英文|今天天气怎么样？|介绍一下量子力学|现在几点了？|红楼梦的作者是谁？|测试
为什么？|请介绍一下你自己|请解答图中的问题
这个人是谁？|这张照片是在哪里拍的？|这道题怎么做？|请把图片转换成表格|现在是白天还是晚上？
他多大了？|请用中文回答
这是什么品牌？|给我讲个故事|推荐一本书|中国有多少人？|怎么做红烧肉？|人生的意义是什么？|继续
你是什么模型？|你是谁开发的？|帮我写一封邮件|请总结这段话|图中公式的结果是什么？
使用中文回答，图中是谁？|画一座城堡|这张照片是什么时候拍的？|明天穿什么好？|替我做作业
这个地方叫什么？|昨天的比赛谁赢了？|他为什么笑？|今天心情怎么样？|企鹅住在哪里？|什么是机器学习？
发动机是怎么工作的？|我饿了|我爱你|你听得到吗？|晚饭吃什么？|这个能吃吗？|把数据做成表格|多少钱？
快乐的近义词是什么？|买哪款手机好？|这座桥有多长？|这本书叫什么名字？|设一个七点的闹钟
给妈妈打电话|我刚才说了什么？|你是真人吗？|谁创造了你？|改正错别字|什么是爱？|这幅画想表达什么？
这是哪一年建的？|这合法吗？|猜猜我的年龄|怎么减肥？|北京有什么好玩的？|图中的人在做什么？
请识别图中的人物|这件衣服多少钱？|请把这首诗背一遍"""
OPEN_EN = """Tell me about|Who invented|What is|Why is|How do I cook|Write a letter about
Explain|Where is|When was|Give me a list of|How much is|Can you find|Do you like
What do you think of|Please write|Translate|Calculate|How far is|How tall is|Define|Compare
Show me|Sing about|Read|I want to buy|Help me with"""
THING_EN = """the moon|Paris|a computer|history|music|the weather|my homework|football
the president|love|bread|the internet|mathematics|a king|Shakespeare|Tokyo|a robot|the river
money|the human brain|a train|this formula|a table|12 times 7|17 + 25|gravity|the dentist|jazz
a sandwich|the moon landing|my neighbour|electric cars|the price of oil|chess|a good novel|yoga
dinosaurs|a recipe|the word|the second world war|an essay|this code
English grammar|the stock market|a birthday party|the universe"""
OPEN_ZH = """请介绍|什么是|为什么|怎么学习|谁发明了|请写一篇关于|解释一下|告诉我|我想了解
请翻译|请计算|如何理解|你喜欢|你怎么看|帮我查一下|请列出|比较一下|什么时候有|哪里有|我要买
请使用中文说明|说说"""
THING_ZH = """月亮|北京|电脑|历史|音乐|天气|作业|足球|爱情|面包|互联网|数学|国王|机器人|长江|钱
大脑|火车|这个公式|表格|十二乘七|3加5|万有引力|恐龙|菜谱|第二次世界大战|作文
代码|英语语法|股票|生日|宇宙|上海|春节|中医|手机|大学|电影|人工智能|地图|长城|老师|医生|时间
答案|题目|国家|经济|世界|身体"""
# Strung together at random, so that a question is known by its language and not by its words.
LOOSE_EN = """a|about|after|again|all|always|am|an|and|any|are|as|ask|at|bad|be|because|been|before
best|better|big|book|both|boy|bring|but|buy|by|can|cheap|child|city|close|cold|come|cook|could
country|day|did|do|does|doctor|dog|door|down|drink|drive|each|easy|eat|email|every|fast|father|feel
few|film|find|fix|fly|food|for|friend|from|game|get|girl|give|go|good|great|had|hand|hard|has|have
he|health|hear|her|here|him|his|home|hot|hour|how|I|if|important|in|into|is|it|job|just|keep|know
language|last|late|learn|leave|left|less|let|letter|life|light|like|little|live|long|look|lose|make
man|many|may|me|mean|meet|mind|money|month|more|morning|most|mother|much|music|must|my|name|need
never|new|next|nice|night|no|not|now|of|off|often|old|on|once|one|only|open|or|other|our|out|over
page|paper|party|pay|people|play|please|poor|problem|put|question|quick|read|really|recipe|rich|run
said|sad|same|say|school|see|sell|send|she|should|show|sing|sit|sleep|small|so|some|song|soon|speak
spend|start|stay|still|stop|story|street|strong|sum|summer|take|talk|teach|tell|than|that|the|their
them|then|there|these|they|thing|think|this|those|time|tired|to|today|together|tomorrow|too|town
travel|true|try|turn|under|up|us|use|very|visit|wait|walk|want|was|watch|water|way|we|wear|week
well|were|what|when|where|which|while|who|whose|why|will|win|winter|wish|with|without|woman|word
work|world|worse|would|write|wrong|year|yes|yet|you|young|your"""
LOOSE_ZH = """我|你|他|她|我们|他们|这|那|哪|谁|什么|怎么|为什么|吗|呢|的|了|在|是|有|不|很|都|也
就|要|想|会|能|可以|应该|今天|明天|昨天|早上|晚上|时候|年|月|天|小时|家|学校|公司|朋友|爸爸|妈妈
孩子|先生|工作|学习|生活|问题|吃|喝|买|卖|看|听|说|写|读|走|跑|坐|睡|玩|给|把|和|因为|所以|但是
如果|已经|最|更|太|好|坏|大|小|多|少|新|旧|快|慢|高|低|贵|便宜|重要|高兴|难|容易|城市|国家|语言
文章|游戏|歌|饭|水|钱|车站|机场|医院|银行|帮|请|告诉|知道|觉得|喜欢|需要|开始|结束|一起|怎样|多久
几点|第一|价格|办法|方法|意思|关系"""
# Things that are never drawn, for questions that sound like the model's own.
STRANGERS_EN = """dog|cat|person|bird|horse|bicycle|table|chair|cup|book|train|bus|plane|phone|man
woman|child|banana|pizza|bottle|window|cow|lamp|shoe|hat|clock|cloud|road|bridge|rabbit|truck
spoon|robot|mountain|pencil|elephant|monkey|guitar|umbrella|cake|bear|lion|duck|door|key|bag"""
STRANGERS_ZH = """狗|猫|人|鸟|马|自行车|桌子|椅子|杯子|书|火车|公交车|飞机|手机|男人|女人
孩子|香蕉|披萨|瓶子|窗户|牛|灯|鞋|帽子|钟|云|路|桥|兔子|卡车|勺子|机器人|山|铅笔|大象|猴子|吉他|雨伞|蛋糕|熊|狮子
鸭子|门|钥匙|包"""


def cut(text: str) -> tuple[str, ...]:
    return tuple(text.replace("\n", "|").split("|"))


def noise(rng: Rng) -> str:
    """A few stray letters and digits."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789 .,-+=?"
    return "".join(letters[i] for i in rng.integers(0, len(letters), int(rng.integers(1, 14))))


def asker(
    whole: str, opening: str, thing: str, loose: str, gap: str, ends: tuple[str, ...]
) -> Callable[[Rng], str]:
    """A function that makes one off-topic question of these pieces."""
    wholes, openings, things, words = cut(whole), cut(opening), cut(thing), cut(loose)

    def ask(rng: Rng) -> str:
        dice = rng.random()
        if dice < 0.3:
            return wholes[rng.integers(len(wholes))]
        end = ends[rng.integers(len(ends))]
        if dice < 0.65:
            text = gap.join(rng.choice(words, int(rng.integers(2, 9))))
            return (text if rng.random() < 0.3 else text[0].upper() + text[1:]) + end
        text = openings[rng.integers(len(openings))] + gap + things[rng.integers(len(things))]
        if dice < 0.72:
            text += gap + things[rng.integers(len(things))]
        elif dice < 0.77:
            text += gap + noise(rng)
        return text + end

    return ask


SMALL_TALK: dict[str, Callable[[Rng], str]] = {
    "en": asker(WHOLE_EN, OPEN_EN, THING_EN, LOOSE_EN, " ", ("", ".", "?", "!")),
    "zh": asker(WHOLE_ZH, OPEN_ZH, THING_ZH, LOOSE_ZH, "", ("", "。", "？", "?")),
}
# Asked only in evaluation: none of these is in the pools above.
HELD_EN = """Which team won the world cup in 1998?|Please book a flight to Rome.|Is coffee healthy?
How do magnets work?|Recommend a film for tonight.|What does the proverb mean?|Spell necessary.
Who painted the Mona Lisa?|Why is the sky blue?|Can dogs eat chocolate?|Turn on the lights.
Give me the lyrics of that song.|How many grams are in an ounce?|What is your favourite food?
Is he married?|Draft an email to my boss.|What is the square root of 81?|Fix the bug in my program.
When does the shop open?|Which medicine helps against headaches?|What is she thinking?
How old is the universe?|Who is the tallest man on earth?|Plan a trip to Norway.|What is DNA?
Sort these numbers in ascending order.|What is the plot of Macbeth?|Do you have feelings?
Rewrite this paragraph politely.|How do I tie a tie?|What year is it?|Name three rivers in Asia.
Are you ChatGPT?|What is the boiling point of water?|Where can I buy cheap shoes?|Good night
Play some music.|Is this building famous?|What is the emotion of the woman?|Solve x + 3 = 8.
Which breed is the dog?|Create a logo.|How much does the watch cost?|Nice to meet you
What is written on her shirt in French?|Help!|Who will win the election?|Bye|Is it raining?
What is the licence plate of the truck?"""
HELD_ZH = """世界杯冠军是谁？|帮我订一张去上海的机票|喝咖啡健康吗？|磁铁是怎么工作的？
推荐一部好看的电影
这句成语是什么意思？|蒙娜丽莎是谁画的？|天空为什么是蓝的？|狗能吃巧克力吗？|把灯打开
这首歌的歌词是什么？
一磅等于多少克？|你最喜欢吃什么？|他结婚了吗？|给老板写一封辞职信|八十一的平方根是多少？
帮我改一下程序里的错误
商店几点开门？|头疼吃什么药？|她在想什么？|宇宙有多大年纪？|世界上最高的人是谁？|帮我计划一次旅行
什么是基因？
请把这些数字从小到大排列|西游记讲了什么故事？|你有感情吗？|请把这段文字改得礼貌一些|领带怎么打？
今年是哪一年？
说出三条亚洲的河流|你是ChatGPT吗？|水的沸点是多少？|哪里能买到便宜的鞋？|晚安|放一首歌
这座建筑有名吗？
这位女士的表情怎么样？|解方程x+3=8|这只狗是什么品种？|设计一个标志|这块手表多少钱？|很高兴认识你
明天会下雨吗？
救命|谁会赢得选举？|再见|如何提高成绩？|这辆卡车的车牌号是多少？|怎样才能睡得好？"""
HELD_OUT = {"en": cut(HELD_EN), "zh": cut(HELD_ZH)}
