"""Names of imaginary towns: a first part and a last part, so that a name never seen is made of parts that were."""

import random

_FIRST = """
Amber Arrow Barrow Birch Brack Brindle Calder Candle Clover Cobble Copper Dapple Drift Dunmer Elder Ember Fallow Fenner
Ferrow Fiddle Frost Garner Gossam Granner Harrow Hazel Hollin Iver Jasper Juniper Kelder Kettle Lanter Larken Linden
Lorner Marrow Merri Minnow Moss Nettle Norrin Oster Otter Pebble Penner Quarrel Quill Ravel Reedle Rowan Sallow
Saffer Sorrel Tanner Tarnel Thistle Umber Velver Wander Wendel Willow Yarrow Zeller
""".split()
_LAST = """
beck borough bridge bury by cliff combe cross dale den field ford garth gate ham haven holm hurst low march mere minster
moor ness port shaw stead thorpe ton well wick worth
""".split()


def town_names(seed: int) -> list[str]:
    """All names there are, each once, in an order drawn from `seed`; none stands within another."""
    names = [first + last for first in _FIRST for last in _LAST]
    random.Random(f"names {seed}").shuffle(names)
    return names
