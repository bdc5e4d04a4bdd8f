"""A target without a model: it paints the colour of the seed, and always gives the same reply."""

from dataclasses import dataclass

from PIL import Image

from blip3o.evaluate.benchmark.work import Done, keep_image, keep_reply


@dataclass
class FakeTarget:
    """A target that paints a colour of the seed, and says what it was told to."""

    says: str = "red"
    made: int = 0

    what = "fake"
    can_decode = False

    def identity(self):
        return {"target": "fake"}

    def run(self, work):
        for piece in work:
            self.made += 1
            color = tuple(piece.seed.to_bytes(8, "big")[-3:])
            if piece.kind == "ask":
                keep_reply(piece, self.says, truncated=False)
            else:
                keep_image(piece, Image.new("RGB", (16, 16), color))
            yield Done(uri=piece.uri, seconds=0.0)
