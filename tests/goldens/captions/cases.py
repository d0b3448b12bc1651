"""Captions as web pages have them, for every rule by which they are cleaned, and random ones."""

import random
from pathlib import Path

from imagen_jax.text.cleaning import cleaning_fn

GOLDEN = Path(__file__).parent / "golden.json"
CAPTIONS = (
    "",
    " \t\n",
    "A photo of a Corgi",
    "  Two   spaces\tand\na line  ",
    "İstanbul, ÉCOLE and STRASSE",
    "a%20red+circle%2C blue%E9 100%",
    "<person> and <Person> ride a bike",
    "see http://example.org/a/b.html?q=1&r=2 for more",
    "https://www.example.com: the site",
    "HTTPS:shop now, http://",
    "www.photos.co.uk/cats/ - cats",
    "www:8080 and www:/path",
    "mail bob@example.com or visit shop.net/now",
    "sub-domain.example.edu/~user/index_2.html.",
    "the .net framework and node.js by a.b.c.it",
    "<b>bold</b> and <i>italic <u>nested</i></u>",
    '<a href="http://example.org">a link</a><br/>next line',
    "a <!-- hidden --> comment",
    "3 < 4 and 5 > 2 <3",
    "<p>one<p>two<img src=x.png alt='cat'>",
    "&lt;b&gt;escaped&lt;/b&gt; &amp;amp; twice &amp;lt;i&amp;gt;",
    "Tom &amp; Jerry &quot;The Movie&quot; &quot",
    "caf&eacute; &#233; &#xe9; &nbsp; &copy; &unknown; &#9999999999;",
    "AT&T, R&D & Q&A",
    "@alice and @bob_99: hello @ home",
    "漢字の壁紙 カタカナ ひらがな 한글",
    "㈱ ㍿ 㐀 ䷀ ㇀ ㇰ 龿 ꀀ",
    "dash—dash – dash ‐ dash ‑ dash ― dash ﹘ dash － dash ー",
    "〜 wave 〰 wavy ゠ double ־ maqaf ᠆ ⸗ ⸚ ⸺ ⸻ ⹀ ⹝",
    "“curly” ‘single’ «guillemets» `tick´ ¨",
    "server 192.168.0.1 and 1.2.3.4.5 and 1234.1.1.1",
    "article 3:45 ",
    "score 3:45 <br>",
    "first\\nsecond\\\\n third",
    "#1 #12 #123 #1234 #12345 #1234567 #12a ##1",
    "123456 12345 1234567890 a123456 1,234,567",
    "IMG_1234.JPG by me, holiday.photo.png.webp and .pdf",
    "movie.mp4 app.apk draw.eps scan.bmp a.jpegs",
    "png jpeg images, jpg image of a cat, a bmpx xpng",
    '"""SALE""" \'\'now\'\' "\'mixed\'"',
    "wait... what.. ok. ....",
    "***AUSVERKAUFT***, #AUSVERKAUFT [new] {deal} (50%) ~ © ® ™ § ¡hola! ¿qué?",
    "a | b \\ c / d * e • f · g º h ½ i ¾",
    "one . two .  three . .",
    "this-is-my-cute-cat",
    "this_is_my_cute_cat",
    "a-b-c and d_e",
    "well-known, state-of-the-art",
    "schÃ¶n, donâ€™t, voilÃ\xa0 &Atilde;&copy;",
    "ｆｕｌｌｗｉｄｔｈ ＆ａｍｐ； ＜ｂ＞ ﬁne ligatures",
    "ab\x00c\x1b[31m red\x1b[0m \ufeffbom\u200b zero width",
    "cafe\u0301 decomposed and A\u030a",
    "jc6640 is jc6640vc or 6640vc231, x1 abc12345 abcd123",
    "code j2d1a2a and 4k8s9p0x, mp3 h2o 3d 1080p",
    "size 10x20 cm, 1.5×3.25 or 4х5 (10 x 20) 8x10in",
    "Worldwide free shipping! FREE SHIPPING worldwide  shipping free",
    "free download wallpaper download free downloads",
    "click for details, click on image, please click  on it, clicks for all",
    "page 12 of book, pages 3, page\u00a07",
    "title : subtitle  :  more: end :",
    "one,two.three/four,5.6 7,8 a.1",
    '"quoted whole"',
    "'it''s quoted'",
    '"open and \'close"',
    "- leading dash",
    "_under_",
    ": colon start; and end:",
    "trailing plus +",
    "trailing, ",
    ".hidden",
    ".hidden file",
    "٣٤٥ #٣ ١٢٣٤٥٦ 1٢x٣4",
    "<script>alert('x')</script> shown <style>b {}</style>",
    "&amp;quot;double&amp;quot; &#38;#65; &#38;lt;",
    "%3Cb%3Ebold%3C/b%3E %26amp; %2B+%25",
    "ſhort Kelvin K5a K and ﬀ",
    "\u2028separated\u2029 by\x85lines\x1cand files",
    "!!! ??? ,,, ;;; --- ___ ''' ===",
    "a " * 300,
    "a1 " * 40 + "supercalifragilistic" * 20,
)
# what random captions consist of: what rules look for, their separators, and what none expects
_PARTS = """
a b Z 1 12 123 1234 12345 123456 1999 . .. , ; : / \\ \\n - -- _ __ # @ @bob & &amp &amp; &quot
&quot; &lt; &gt; &#65; &#x41; &#8217; &nbsp; <b> </b> <br/> <person> <script> </script> <a href="x">
< > " ' ` « » ” ’ ¨ www.site.com https:// www: site.ru http://x.org/page?q=1 a.gov bob@mail.com
10.0.0.1 1:23 photo.jpg .png jpg jpeg images mp4 free shipping worldwide download click for on page
12 jc6640 jc6640vc 6640vc231 j2d1a2a 10x20 1.5×3 4х5 漢字 カナ 〜 — ‐ É ß İ ſ K ½ ™ ~ ( ] { | * + %20 %41
%E9 ٣٤٥ ＆ ＃ ； ｑ Ã© â€™ 😀 ﬁ ² <!-- --> <![CDATA[ ]]> <?xml <!doctype
"""
_SEPARATORS = (*" " * 8, *"\n\t\x00\x1c\xa0\u0301\u200b\u2028\ud83d\ude00", " : ")


def random_captions(count, seed=0):
    """Yields captions: three of four of parts that rules look for, the others of random code points."""
    rng, parts = random.Random(seed), [*_PARTS.split(), *_SEPARATORS]
    for i in range(count):
        if i % 4:
            yield "".join(rng.choice(parts) for _ in range(rng.randint(1, 16)))
        else:
            ends = (rng.choice((0x80, 0x3000, 0x110000)) for _ in range(rng.randint(1, 40)))
            yield "".join(chr(rng.randrange(end)) for end in ends)


def ours(caption):
    return cleaning_fn("if")(caption)
