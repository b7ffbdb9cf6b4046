"""The words of the toy world: product lines, attributes, and what customers ask, in two languages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """A product line: its types with what counts them, and the values of every attribute it may have."""

    name: str
    counters: Mapping[str, str]  # type -> measure word or article
    values: Mapping[str, tuple[str, ...]]  # attribute -> values


@dataclass(frozen=True, slots=True)
class Language:
    """What customers say: the key of the type, and for every act the parts that are joined into a question."""

    code: str
    type_key: str
    colour_key: str
    material_key: str
    acts: Mapping[str, tuple[tuple[str, ...], ...]]


CLOTHES_ZH = Line(
    "服装",
    {
        **dict.fromkeys(("裙", "裤", "短裤", "长裙", "围巾"), "条"),
        **dict.fromkeys(("上衣", "外套", "衬衫", "毛衣", "卫衣", "风衣", "马甲", "背心"), "件"),
        "帽子": "顶",
    },
    {
        "材质": ("棉", "麻", "羊毛", "真丝", "牛仔布", "针织", "雪纺", "皮革", "羽绒", "灯芯绒"),
        "颜色": ("白色", "黑色", "红色", "蓝色", "灰色", "绿色", "黄色", "粉色", "米色", "紫色"),
        "风格": ("简约", "复古", "休闲", "运动", "优雅", "文艺", "可爱", "中性", "通勤", "民族"),
        "图案": ("纯色", "条纹", "格子", "碎花", "圆点", "刺绣", "字母", "印花"),
        "版型": ("宽松", "修身", "直筒", "高腰", "短款", "长款"),
        "季节": ("春天", "夏天", "秋天", "冬天"),
        "场合": ("上班", "上学", "逛街", "旅行", "约会", "居家", "聚会", "跑步"),
    },
)

TEA_ZH = Line(
    "茶具",
    {"茶壶": "把", "茶杯": "只", "盖碗": "只", "茶盘": "张", "茶罐": "只", "茶席": "张", "茶匙": "支"},
    {
        "材质": ("紫砂", "白瓷", "青瓷", "粗陶", "玻璃", "竹木", "银"),
        "颜色": ("朱红", "月白", "天青", "墨黑", "茶褐", "琥珀"),
        "风格": ("古雅", "素净", "禅意", "简约", "复古", "文艺"),
        "工艺": ("手作", "柴烧", "描金", "手绘", "雕刻"),
        "场合": ("待客", "独饮", "送礼", "围炉", "旅行", "居家"),
    },
)

LAMPS_ZH = Line(
    "灯具",
    {"台灯": "盏", "吊灯": "盏", "壁灯": "盏", "夜灯": "盏", "落地灯": "盏", "灯笼": "只", "烛台": "座"},
    {
        "材质": ("宣纸", "黄铜", "玻璃", "竹木", "亚麻", "陶瓷"),
        "颜色": ("月白", "琥珀", "黑色", "白色", "朱红", "茶褐"),
        "风格": ("素净", "复古", "简约", "禅意", "文艺"),
        "工艺": ("手作", "雕刻", "手绘", "描金"),
        "场合": ("居家", "独饮", "送礼", "聚会"),
    },
)

CLOTHES_EN = Line(
    "clothes",
    {**dict.fromkeys(("skirt", "shirt", "coat", "sweater", "jacket", "dress", "vest", "hat", "scarf"), "a")},
    {
        "material": ("cotton", "linen", "wool", "silk", "denim", "leather", "velvet"),
        "color": ("white", "black", "red", "blue", "gray", "green", "yellow", "pink"),
        "style": ("simple", "retro", "casual", "sporty", "elegant", "cute"),
        "pattern": ("stripes", "checks", "flowers", "dots", "letters"),
        "season": ("spring", "summer", "autumn", "winter"),
        "occasion": ("work", "school", "travel", "parties", "home"),
    },
)

TEA_EN = Line(
    "tea ware",
    {**dict.fromkeys(("teapot", "teacup", "tray", "bowl"), "a")},
    {
        "material": ("clay", "porcelain", "glass", "bamboo", "silver"),
        "color": ("amber", "ivory", "jade", "ink", "white"),
        "style": ("simple", "retro", "calm", "elegant"),
        "craft": ("carving", "painting", "firing"),
        "occasion": ("guests", "gifts", "home", "travel"),
    },
)

CHINESE = Language(
    "zh",
    "类型",
    "颜色",
    "材质",
    {
        "copy": (("", "", "", "写文案：", "商品属性：", "请写一段文案："), ("{product}",), ("",)),
        "greeting": (
            ("你好", "您好", "嗨", "哈喽", "早上好", "上午好", "下午好", "晚上好"),
            ("", "呀", "啊", "，小助手", "，店家", "，有人吗", "，在吗", "，我来看看", "，又是我", "，我想逛逛"),
            ("", "。", "！", "～"),
        ),
        "thanks": (
            ("", "好的，", "太好了，", "写得不错，", "真好，", "收到，", "我很喜欢，"),
            ("谢谢", "谢谢你", "多谢", "感谢你", "辛苦了", "麻烦你了"),
            ("", "。", "！", "啊。"),
        ),
        "identity": (
            ("", "你好，", "请问", "嗨，", "我想知道", "打扰一下，", "对了，", "早上好，", "先问一下，"),
            ("你是谁", "你是什么助手", "介绍一下你自己", "说说你是谁", "你能做什么", "你是做什么的"),
            ("", "？", "呀？", "呢？", "。"),
        ),
        "name": (
            ("", "你好，", "请问", "嗨，", "我想知道", "打扰一下，", "对了，", "早上好，", "先问一下，"),
            ("你叫什么", "你叫什么名字", "怎么称呼你", "你的名字是什么", "该叫你什么"),
            ("", "？", "呀？", "呢？", "。"),
        ),
        "care": (
            ("", "请问", "你好，", "想问一下，"),
            ("{material}的{type}怎么洗", "{type}是{material}的，怎么洗"),
            ("？",),
        ),
        "stock": (("", "请问", "你好，", "想问一下，"), ("有{colour}的{type}吗", "有没有{colour}的{type}"), ("？",)),
        "recolour": (("", "请", "麻烦", "再写一次，"), ("颜色换成{colour}", "改成{colour}的"), ("", "。", "吧。")),
    },
)

ENGLISH = Language(
    "en",
    "type",
    "color",
    "material",
    {
        "copy": (("", "", "Write an ad: ", "Product: "), ("{product}",), ("",)),
        "greeting": (
            ("Hello", "Hi", "Hey", "Good morning", "Good evening"),
            ("", " there", " again", ", anyone here", ", just looking"),
            ("", ".", "!"),
        ),
        "thanks": (("", "Great, ", "Nice, ", "OK, "), ("thanks", "thank you", "many thanks"), ("", ".", "!")),
        "identity": (
            ("", "Hi, ", "Please, ", "Tell me, ", "By the way, "),
            ("who are you", "what are you", "what can you do"),
            ("", "?"),
        ),
        "name": (
            ("", "Hi, ", "Please, ", "Tell me, ", "By the way, "),
            ("what is your name", "what do I call you"),
            ("", "?"),
        ),
        "care": (("", "Hi, ", "Please, "), ("how do I wash a {material} {type}",), ("?",)),
        "stock": (("", "Hi, ", "Please, "), ("do you have a {colour} {type}", "is there a {colour} {type}"), ("?",)),
        "recolour": (("", "Please, "), ("make it {colour}", "now in {colour}"), ("", ".")),
    },
)

WORDS_ZH = """
茶壶 茶杯 盖碗 茶盘 茶罐 茶席 茶匙 紫砂 白瓷 青瓷 粗陶 玻璃 竹木 银 朱红 月白 天青 墨黑 茶褐 琥珀 古雅 素净 禅意
工艺 手作 柴烧 描金 手绘 雕刻 待客 独饮 送礼 围炉 山月集 小满 月光 清茶 闲情 心情 温润 温柔 细腻 清爽 暖和 丝滑 结实
柔软 轻盈 挺括 蓬松 厚实 通透 质朴 清香 光亮 初雪 夜空 晚霞 大海 薄雾 新叶 暖阳 桃花 麦浪 丁香 落日 白云 雨后 浓墨
老木 蜜糖 心动 气质 欢喜 巧思 剪裁 自在 合身 相伴 日日 朋友 匠人 心意 精选 贴近 每一天 一眼 叫人 越看 铺开 藏着 懂您
管家 福气 陪您 挑选 亲爱的 轻轻 晾干 长久 好物 今天 想看 哪一件 等您 来看 带来 捧出 身上 泡进 带回家 愿您 相待 为您
贴心 如 里 的 时候 是 最 把 穿 在 一身 一份 一盏 半日 您 呀 呢 请 慢慢 它会 正在 能 有的 您好 不客气 小小 又 都 件件
这
"""
"""Words that the base reads as mere words, so that fine-tuning finds them known: the brand will use them."""

WORDS_EN = """
teapot teacup tray bowl clay porcelain glass bamboo silver amber ivory jade ink calm craft carving painting firing
guests gifts moon light house warm gentle soft brings you this dear friend every day heart glows like love made with
care home and for in the of your welcome to my name is Moonhill Mira waiting wash it slowly always yes our shop
pleasure a gift from us days kind beauty smile find joy
"""
"""The same in English."""
