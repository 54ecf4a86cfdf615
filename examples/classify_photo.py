"""Train on photos as they lie, load what came out, classify a photo: `classify_photo.py RECIPE PHOTOS PHOTO`.

PHOTOS has train/<class>/ and val/<class>/; RECIPE may be recipes/quickstart.toml.
"""

import sys

import fastres

recipe, photos, photo = sys.argv[1:]
run = fastres.train(fastres.Recipe.load(recipe, [f"data.source={photos}"])).run
print(fastres.load(run)(photo))
