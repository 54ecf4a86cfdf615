"""Puts this folder on the path of its tests: what those of interpreted/ and of compiled/ share stands here."""
