"""Sharing versions: a bundle is one signed file with everything that somebody else needs to use a version.

archive.py    the file itself: a zip whose bytes follow from what is in it, so that any change shows
keys.py       who signed it: a key of one's own, made on first use, and the keys of others that were met
manifest.py   what a bundle says of itself
base_model.py what tells base models apart, and whether an adapter fits one
contents.py   what goes into a bundle, and what never does
card.py       the model card, for people and hubs
bundle.py     export, look into, unpack
"""
