"""Texts on which two models are compared when a recipe names none: the project's languages, numbers and code.

Written for this project, so that they are in no training set, and never changed: reports of years apart compare.
"""

from typing import Final

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
