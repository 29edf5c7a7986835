"""The six portraits in models/tiny/examples/, and examples.json: who each is, in which scene, and a caption of another.

    python models/tiny/examples.py

Held-out people. The captions describe further scenes and do not name the face; tests ask whether clips show them.
"""

import json
import os
import random

import captions
import people
import pool
import scenes
import world

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "examples")
PEOPLE, PORTRAITS, CLIPS = (pool.HELD_OUT + k for k in (101, 102, 103))
COUNT = 6


def main():
    who, portrait, clip = people.sample(COUNT, PEOPLE), scenes.portrait(COUNT, PORTRAITS), scenes.sample(COUNT, CLIPS)
    rng = random.Random(CLIPS)
    table = {"seeds": {"people": PEOPLE, "portraits": PORTRAITS, "clips": CLIPS}, "people": {}}
    for i in range(COUNT):
        table["people"][f"person{i + 1}"] = {
            "person": people.traits(who, i),
            "portrait": scenes.words(portrait, i),
            "caption": captions.caption(who, clip, i, rng, face=0),
            "clip": scenes.words(clip, i),
        }
    with open(os.path.join(FOLDER, "examples.json"), "w") as f:
        json.dump(table, f, indent=1)
        f.write("\n")
    from PIL import Image

    for i, picture in enumerate(world.render(who, portrait, 1)[0][:, 0].numpy()):
        Image.fromarray(picture).save(os.path.join(FOLDER, f"person{i + 1}.png"))


if __name__ == "__main__":
    main()
