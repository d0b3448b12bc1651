"""Compares our cleaning of captions with that of diffusers' `IFPipeline`."""

import json
import warnings

import bs4
import ftfy
from diffusers import IFPipeline

from tests.goldens.captions.cases import CAPTIONS, GOLDEN, ours, random_captions

RANDOM = 20_000
# the class alone: its networks are not needed
PIPELINE = object.__new__(IFPipeline)


def theirs(caption):
    """Returns what diffusers makes of a caption; None where the HTML parser ends with an error, and diffusers too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of captions that look like a path, or like XML
        try:
            return PIPELINE._text_preprocessing(caption, clean_caption=True)[0]
        except (bs4.exceptions.ParserRejectedMarkup, ValueError):
            return None


def write():
    """Writes what diffusers makes of CAPTIONS to GOLDEN."""
    GOLDEN.write_text(json.dumps({caption: theirs(caption) for caption in CAPTIONS}, indent=1) + "\n")
    print(f"{GOLDEN}: {len(CAPTIONS)} captions")


def compare():
    """Prints how many captions differ, and returns whether none does."""
    print(f"\nCleaned captions, with ftfy {ftfy.__version__} and beautifulsoup4 {bs4.__version__}")
    print(f"{'':32}{'captions':>10}{'changed':>10}{'an error':>10}{'differ':>10}")
    differing = 0
    for name, captions in (("goldens", CAPTIONS), ("random", list(random_captions(RANDOM)))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bs4.XMLParsedAsHTMLWarning)
            pairs = [(caption, ours(caption), theirs(caption)) for caption in captions]
        errors = sum(other is None for _, _, other in pairs)
        changed = sum(other not in (caption.strip().lower(), None) for caption, _, other in pairs)
        wrong = [pair for pair in pairs if pair[2] is not None and pair[1] != pair[2]]
        print(f"{name:32}{len(pairs):10,}{changed:10,}{errors:10,}{len(wrong):10,}")
        for pair in wrong[:5]:
            print("  {!r}: {!r}, expected {!r}".format(*pair))
        differing += len(wrong)
    return differing == 0
