"""The texts on which models are compared, as the tokens that all of them take.

``TEXTS`` are used when a recipe names none: the project's languages, numbers and code. They were written for this
project, so that they are in no training set, and never change: reports of years apart compare.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data import shapes
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.cut import Watch
from hala_hpc.data.files import sources

TEXTS: Final = {
    "arabic-library": (
        "في صباح يوم ماطر دخلت ليلى مكتبة المدينة القديمة تبحث عن خريطة رسمها جدّها قبل ستين عامًا. قال لها "
        "أمين المكتبة إن الخرائط نُقلت إلى الطابق السفلي بعد أن تسرّب الماء من السقف، ثم أعطاها مفتاحًا "
        "صغيرًا صدئًا وطلب منها ألا تشعل الشموع. نزلت الدرج الحجري وهي تعدّ الدرجات: سبع وعشرون درجة، كما كتب"
        " جدّها في دفتره. وعلى الرفّ الأخير، خلف صندوق من المخطوطات، وجدت الخريطة ملفوفة بقماش أزرق، وعليها "
        "ملاحظة تقول: «من يصل إلى هنا فليكمل الطريق»."
    ),
    "arabic-science": (
        "تتبخّر المياه من سطح البحر عندما تسخّنها أشعة الشمس، فيرتفع البخار إلى طبقات الجو الباردة ويتكاثف "
        "على ذرات الغبار مكوّنًا السحب. وإذا كبرت القطرات حتى بلغ قطرها نصف ملّيمتر تقريبًا سقطت مطرًا. تبلغ "
        "كمية الأمطار في هذه المنطقة نحو ٣٢٠ ملّيمترًا في السنة، يهطل ثلثاها بين شهري كانون الأول وآذار. "
        "ولحساب حجم الماء الذي يجمعه سقف مساحته ١٥٠ مترًا مربعًا نضرب المساحة في ارتفاع المطر: ١٥٠ × ٠٫٣٢ = "
        "٤٨ مترًا مكعبًا."
    ),
    "english-letter": (
        "Dear Mr Okafor, thank you for returning the telescope in better condition than it left us. The "
        "scratch on the eyepiece that you mention was there before; my daughter made it in 2009 when she "
        "tried to look at an eclipse through a paper bag. We would be glad to lend it to your school again in"
        " spring, when Jupiter stands high enough to be seen over the grain silo. Please bring a thicker "
        "blanket this time. The field is colder than it looks, and the last group spent more time warming "
        "their hands than finding the moons."
    ),
    "english-reasoning": (
        "A baker sells loaves in boxes of six and trays of ten. On Monday she packed 14 boxes and 9 trays, "
        "and was left with five loaves that fitted neither. How many loaves did she bake? The boxes hold 14 x"
        " 6 = 84 loaves and the trays 9 x 10 = 90, which together is 174. With the five that were left over "
        "the answer is 179. If she had used trays only, she would have needed 18 of them, and the last one "
        "would have held nine loaves."
    ),
    "basque-walk": (
        "Goizean goiz irten ginen herritik, lainoa oraindik ibarrean zegoela. Bidea harrizkoa zen lehen "
        "orduan, baina gero pagadi batean sartu ginen eta lurra bigun-bigun zegoen hostoz beteta. Amonak esan"
        " zigun gailurrean etxola zahar bat zegoela, artzainek udan erabiltzen zutena, eta han atseden har "
        "genezakeela. Hamaikak aldera iritsi ginen; ateak itxita zeuden, baina leihotik begiratuta mahai bat,"
        " bi aulki eta kandela erdi erre bat ikusi genituen."
    ),
    "python": (
        "from collections import Counter\n"
        "\n"
        "\n"
        "def busiest_hours(visits, most=3):\n"
        '    """The hours of the day with the most visits, as pairs of hour and count."""\n'
        "    hours = Counter(visit.arrived.hour for visit in visits if visit.paid)\n"
        "    ranked = sorted(hours.items(), key=lambda item: (-item[1], item[0]))\n"
        "    if len(ranked) < most:\n"
        "        raise ValueError(f'only {len(ranked)} hours have visits')\n"
        "    return ranked[:most]\n"
        "\n"
        "\n"
        "for hour, count in busiest_hours(load('visits.csv')):\n"
        "    print(f'{hour:02d}:00  {\"#\" * count} ({count})')\n"
    ),
    "translation": (
        "Translate into Arabic.\n"
        "English: The bridge will be closed for repairs until the end of the month.\n"
        "Arabic: سيُغلق الجسر لأعمال الصيانة حتى نهاية الشهر.\n"
        "English: Each patient received 20 mg of the medicine twice a day for six weeks.\n"
        "Arabic: تلقّى كل مريض ٢٠ ملغ من الدواء مرتين يوميًا لمدة ستة أسابيع.\n"
        "English: Our neighbours have three cats, and none of them likes the rain.\n"
        "Arabic: لدى جيراننا ثلاث قطط، ولا تحب أيّ منها المطر.\n"
    ),
}
"""By a name that reports show."""


def read(data: Data, count: int, folder: Path, watch: Watch, notes: Counter[str]) -> dict[str, str]:
    """The texts by name: the project's own, or the first ``count`` rows of the recipe's data that hold any.

    Raises HalaError where no row does.
    """
    if not data.path and not data.hub:
        return dict(TEXTS)
    rows = zip(range(count), _rows(data, folder, watch, notes), strict=False)
    texts = {f"row-{number}": text for number, text in rows}
    if not texts:
        raise HalaError("data: no row holds a text")
    return texts


def tokens_of(model: Path, texts: Mapping[str, str], length: int) -> dict[str, list[int]]:
    """The texts as a model's own tokenizer has them, special tokens included, each cut to ``length``.

    Raises HalaError for a model without ``tokenizer.json``.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    except Exception as error:  # it raises nothing more special
        raise HalaError(f"{model}: no tokenizer.json that can be read: {error}") from error
    tokenizer.no_truncation()
    return {name: list(tokenizer.encode(text).ids)[:length] for name, text in texts.items()}


def agreed(models: Mapping[str, Path], texts: Mapping[str, str], length: int) -> dict[str, list[int]]:
    """The tokens that all models take, of texts with at least two. Raises HalaError where they differ."""
    (first, tokens), *others = ((label, tokens_of(model, texts, length)) for label, model in models.items())
    for label, of_other in others:
        if differing := [name for name in tokens if tokens[name] != of_other[name]]:
            raise HalaError(
                f"task.models: {first} and {label} make different tokens of the same text ({differing[0]})",
                "only models of one tokenizer can be compared token by token",
            )
    long = {name: ids for name, ids in tokens.items() if len(ids) > 1}
    if not long:
        raise HalaError("data: no text has two tokens")
    return long


def _rows(data: Data, folder: Path, watch: Watch, notes: Counter[str]) -> Iterator[str]:
    bad = BadRows(data.bad_rows, notes, folder, most=1)
    for source, chunk in sources.read(data, folder / "input", watch.say, bad):
        shape = shapes.shape_of(data, ["user", "assistant"], chunk.schema())
        for number, row in zip(chunk.numbers, chunk.rows, strict=True):
            try:
                text = "\n\n".join(text for _, text in shape.texts(row))
            except HalaError as error:
                bad.add(sources.where(source, number), error)
                continue
            if text:
                yield text
