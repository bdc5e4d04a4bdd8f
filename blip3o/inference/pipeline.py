"""The trained model as one object: `generate` makes images, `chat` answers.

The command line, evaluation and the server all use it. Every prompt is padded to one length, and every batch to one of
a few widths at which the bits of a row are the same (`blip3o.inference.widths`). So the same prompt and seed give the
same image on their own, in any batch, and at any position in it.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip3o.config.resize import ResizeConfig
from blip3o.data.images.decode import CROP, to_square
from blip3o.data.text.templates import ChatTemplate, Turn
from blip3o.data.text.tokenizer import GENERATE, PAD, ChatTokenizer
from blip3o.device import Execution
from blip3o.errors import PromptTooLongError, RequestError
from blip3o.inference import arguments
from blip3o.inference.chat import MAX_REPLY_TOKENS, ReplyBatch, Sampling, new_reply, reply_rows, write_replies
from blip3o.inference.messages import Conversation, ImageSource, load_images, parse_conversations, parse_messages
from blip3o.inference.precision import ResolvedPrecision
from blip3o.inference.widths import chunks, decoder_widths, default_decode_batch_size, denoiser_widths, prompt_widths
from blip3o.model.backbone import Prompt
from blip3o.model.decoders.pixel import to_pixels
from blip3o.model.unified import UnifiedModel
from blip3o.rng import torch_generator

DEFAULT_BATCH_SIZE = 4
DEFAULT_MAX_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Blip3oPipeline:
    """A model ready to use. It runs batches of at most `batch_size` rows, and decodes `decode_batch_size` at a time.

    >>> pipeline = blip3o.load("runs/demo/bundle")
    >>> pipeline.generate("a red circle", seed=1)[0].save("out.png")
    >>> pipeline.chat("What color is the circle?", image="out.png")
    """

    model: UnifiedModel
    tokenizer: ChatTokenizer
    template: ChatTemplate
    max_length: int
    device: torch.device
    batch_size: int = DEFAULT_BATCH_SIZE
    decode_batch_size: int | None = None  # None: `default_decode_batch_size`
    execution: Execution = "eager"
    bundle_sha256: str = ""  # of the files it was loaded from; "" if it was built otherwise

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and arithmetic. Noise, the flow's steps and features are fp32 in any case."""
        return next(getattr(self.model, "backbone", self.model).parameters()).dtype

    @property
    def precision(self) -> ResolvedPrecision:
        """The name of the dtype."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    @functools.cached_property
    def prompt_widths(self) -> tuple[int, ...]:
        """The batch widths at which prompts are read; see `blip3o.inference.widths`."""
        token, longest = self.tokenizer.ids[GENERATE], self.max_length
        prompt = self._padded([[token] * max(longest - n, 1) for n in range(self.batch_size)])
        return prompt_widths(self.model, prompt, self.batch_size)

    @functools.cached_property
    def denoiser_widths(self) -> tuple[int, ...]:
        """The rows, conditional and null ones, of a pass of the denoiser; at most two if it is compiled or recorded."""
        shapes = () if self.execution == "eager" else (self.batch_size, 2 * self.batch_size)
        return denoiser_widths(self.model, 2 * self.batch_size, shapes)

    @functools.cached_property
    def decode_widths(self) -> tuple[int, ...]:
        """The batch widths of the decoder to pixels, up to `decode_rows`."""
        return decoder_widths(self.model, self.null_features, self.decode_rows)

    @property
    def decode_rows(self) -> int:
        """The most rows in a batch of the decoder."""
        return self.decode_batch_size or default_decode_batch_size(self.model.config.decoder, self.batch_size)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        n: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
    ) -> list[Image.Image]:
        """Generates `n` RGB images for a prompt, or for each of a list of prompts; always returns a list.

        >>> image = pipeline.generate("a red circle", seed=1)[0]
        >>> four = pipeline.generate("a red circle", seed=1, n=4)  # seeds 1, 2, 3 and 4
        >>> circle, star = pipeline.generate(["a red circle", "a blue star"], seed=[1, 7])

        Images are ordered by prompt. Image i of a prompt has the seed `seed` + i (`seed` defaults to 0), so a prompt
        gives the same images in a list as on its own. A list of seeds has one for each image. `num_inference_steps` and
        `guidance_scale` default to the bundle's; a `guidance_scale` of 1 turns guidance off and halves the cost.

        Guidance steers away from the `negative_prompt`; without one, from the null condition of training.

        Raises `RequestError` for an empty or too long prompt, a value of the wrong type or out of range, or a bundle
        without the parts for generation.
        """
        self.require_generation()
        arguments.check_positive_int("n", n)
        prompts = arguments.parse_prompts(prompt)
        seeds = arguments.parse_seeds(seed, prompts=len(prompts), n=n)
        repeated = [prompt for prompt in prompts for _ in range(n)]
        features = self.generate_features(
            repeated,
            seeds=seeds,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
        )
        return self.decode(features, seeds=seeds)

    @torch.inference_mode()
    def generate_features(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: int | Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
    ) -> Tensor:
        """Features [n, L, F] for each prompt, with seeds as in `generate`. Raises `RequestError` as it does."""
        prompts = arguments.parse_prompts(prompts)
        seeds = arguments.parse_seeds(seeds, prompts=len(prompts))
        arguments.check_sampler(num_inference_steps, guidance_scale, negative_prompt)
        ids = [self.generation_ids(prompt) for prompt in prompts]
        avoided = negative_prompt or ""
        negative = self.generation_ids(avoided) if avoided.strip() else None
        return self._features(
            ids, seeds, negative=negative, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
        )

    def _features(
        self,
        ids: Sequence[list[int]],
        seeds: Sequence[int],
        *,
        negative: list[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        sampler = self.model.config.sampler
        steps = sampler.num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance = float(sampler.guidance_scale if guidance_scale is None else guidance_scale)
        states = self.states_of(ids)
        null = self.states_of([negative] * len(ids)) if negative else torch.zeros_like(states)
        noise = torch.stack([self.feature_noise(seed) for seed in seeds])
        found = tuple(w // 2 for w in self.denoiser_widths if w > 1) if guidance != 1 else self.denoiser_widths
        widths = tuple(width for width in found if width <= self.batch_size) or found
        parts = [
            self.model.sample_features(
                rows, start, num_inference_steps=steps, guidance_scale=guidance, null_states_BNH=null_rows
            )[:count]
            for count, (rows, start, null_rows) in chunks(states, noise, null, widths=widths)
        ]
        return torch.cat(parts)

    @torch.inference_mode()
    def condition(self, prompts: str | Sequence[str]) -> Tensor:
        """Query states [n, N, H] of prompts. Raises `RequestError` for an empty or too long prompt."""
        return self.states_of([self.generation_ids(prompt) for prompt in arguments.parse_prompts(prompts)])

    @torch.inference_mode()
    def states_of(self, rows: Sequence[list[int]]) -> Tensor:
        """Query states [n, N, H] of prompts, given as token ids; no row depends on the others."""
        prompt = self._padded(rows)
        parts = [
            self.model.query_states(Prompt(input_ids=ids, attention_mask=mask))[:count]
            for count, (ids, mask) in chunks(prompt.input_ids, prompt.attention_mask, widths=self.prompt_widths)
        ]
        return torch.cat(parts)

    @torch.inference_mode()
    def decode(self, features: Tensor, *, seeds: int | Sequence[int] | None = None) -> list[Image.Image]:
        """Features [n, L, F] → RGB images, `decode_rows` at a time; each seed gives the decoder's noise.

        Raises `RequestError` for features of another shape or seeds that do not belong to them.
        """
        self._check_features(features)
        seeds = arguments.parse_seeds(seeds, prompts=len(features))
        noise = torch.stack([self.pixel_noise(seed) for seed in seeds])
        null = self.null_features
        parts = [
            self.model.decode(rows, start, null)[:count]
            for count, (rows, start) in chunks(features.to(self.device), noise, widths=self.decode_widths)
        ]
        return [Image.fromarray(pixels) for pixels in to_pixels(torch.cat(parts)).cpu().numpy()]

    @torch.inference_mode()
    def encode(self, images: ImageSource | Sequence[ImageSource]) -> Tensor:
        """Images → their features [n, L, F], computed as generation targets are.

        Images are as in `chat`. Raises `RequestError` if one cannot be read, or if the bundle has no encoder.
        """
        images = load_images(images)
        if "encoder" in self.model.config.parts:
            self._require_part("encoder", "generates and chats, but encodes no images")
        pixels = self._pixels(images, self.model.config.target_size, self.model.config.target_resize)
        return torch.cat([self.model.features(part)[:n] for n, (part,) in chunks(pixels, widths=(self.batch_size,))])

    @functools.cached_property
    def null_features(self) -> Tensor | None:
        """Features [L, F] of the decoder's null branch, computed once; None if the decoder has no such branch.

        They are those of a black image or, as upstream's, generated with seed 0 for a prompt of only `[IMG]`.
        """
        branch = self.model.config.decoder.null_branch
        if branch is None:
            return None
        if branch == "black":
            return self.encode([Image.new("RGB", (1, 1))])[0]
        return self._features([[self.tokenizer.ids[GENERATE]]], [0])[0]

    def chat(
        self,
        messages: Conversation,
        *,
        image: ImageSource | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
    ) -> str:
        """The reply, of at most `max_tokens` tokens, to a question or to messages in OpenAI's format.

        >>> pipeline.chat("What color is the circle?", image="out.png")
        >>> pipeline.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it red?"}])
        >>> ask = {"type": "text", "text": "What is it?"}
        >>> pipeline.chat([{"role": "user", "content": [ask, {"type": "image", "image": picture}]}])

        A conversation has at most one image (a PIL image, a path or a `data:` URL), in the user's first message; see
        `blip3o.inference.messages`. A `temperature` of 0 is greedy; above, tokens are drawn from the most likely ones
        that hold `top_p` of the probability, by `seed`. So the same arguments always give the same reply. It ends
        before the first of the texts in `stop`.

        Raises `RequestError` for an invalid argument, `PromptTooLongError` for a conversation that is too long.
        """
        pieces = self.stream_chat(
            messages, image=image, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop
        )
        return "".join(pieces)

    def chat_batch(
        self,
        conversations: Sequence[Conversation],
        *,
        images: Sequence[ImageSource] | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> list[str]:
        """One greedy reply for each conversation, which is given as in `chat`; either all have an image or none has.

        >>> pipeline.chat_batch(["What color is it?", "What is it?"], images=["one.png", "other.png"])

        Raises `RequestError` as `chat` does.
        """
        replies = self.reply_ids(conversations, images=images, max_tokens=max_tokens)
        return [self.tokenizer.decode(reply) for reply in replies]

    @torch.inference_mode()
    def stream_chat(
        self,
        messages: Conversation,
        *,
        image: ImageSource | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
    ) -> Iterator[str]:
        """The reply of `chat` as a stream of pieces, each yielded as soon as its tokens form whole characters.

        Raises `RequestError` as `chat` does. Tokens are computed only as the caller iterates.
        """
        arguments.check_positive_int("max_tokens", max_tokens)
        arguments.check_sampling(temperature, top_p)
        texts = arguments.parse_stop(stop)
        turns, shown = parse_messages(messages, image)
        prompt = self.chat_prompt(turns, () if shown is None else (shown,))
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=arguments.parse_seed(seed))
        reply = new_reply(self.tokenizer, max_tokens=max_tokens, sampling=sampling, stop=texts)
        yield from filter(None, write_replies(self.reply_batch(max_tokens), iter([(prompt, reply)])))

    @torch.inference_mode()
    def reply_ids(
        self,
        conversations: Sequence[Conversation],
        *,
        images: Sequence[ImageSource] | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> list[list[int]]:
        """As `chat_batch`, but token ids without the stop token; a reply of `max_tokens` ids may be truncated."""
        arguments.check_positive_int("max_tokens", max_tokens)
        turns, shown = parse_conversations(conversations, images)
        prompts = [
            self.chat_prompt(each, () if shown is None else (shown[number],)) for number, each in enumerate(turns)
        ]
        replies = [new_reply(self.tokenizer, max_tokens=max_tokens) for _ in prompts]
        for _ in write_replies(self.reply_batch(max_tokens), iter(zip(prompts, replies, strict=True))):
            pass
        return [reply.ids for reply in replies]

    @functools.cached_property
    def reply_rows(self) -> int:
        """The replies that are written together: `batch_size`, or as many as have the same bits in any row."""
        return reply_rows(self.model.backbone, self._padded([[self.tokenizer.ids[GENERATE]]]), self.batch_size)

    def reply_batch(self, max_tokens: int = MAX_REPLY_TOKENS) -> ReplyBatch:
        """Empty rows for `reply_rows` replies."""
        return ReplyBatch(self.model.backbone, rows=self.reply_rows, max_length=self.max_length, max_tokens=max_tokens)

    def chat_prompt(self, turns: Sequence[Turn], images: Sequence[Image.Image]) -> Prompt:
        """A conversation with its images as one padded row. Raises `RequestError` as `chat_ids` does."""
        ids = self.chat_ids(turns, with_image=bool(images))  # first: it refuses images that the model cannot read
        backbone = self.model.config.backbone
        pixels = self._pixels(images, backbone.image_size, backbone.image_resize) if images else None
        return self._padded([ids], pixels)

    def feature_noise(self, seed: int) -> Tensor:
        """The initial noise [L, F] of a seed's features."""
        key = arguments.parse_seed(seed)
        return torch.randn(self.model.latent_shape, generator=torch_generator(key, "features")).to(self.device)

    def pixel_noise(self, seed: int) -> Tensor:
        """The initial noise of a seed's pixels, of shape `config.decoder.noise_shape`."""
        shape = self.model.config.decoder.noise_shape
        return torch.randn(shape, generator=torch_generator(arguments.parse_seed(seed), "pixels")).to(self.device)

    def generation_ids(self, prompt: str) -> list[int]:
        """Token ids of a request for an image. Raises `RequestError` for an empty or too long prompt."""
        arguments.check_text(prompt)
        if not prompt.strip():
            raise RequestError("the prompt is empty: say what to generate")
        return self._checked_length(self.template.generation_request(self.tokenizer, prompt))

    def chat_ids(self, conversation: Conversation, *, with_image: bool) -> list[int]:
        """Token ids of a conversation, up to where the reply starts; `with_image` also if it holds none itself.

        Raises `RequestError` if it is too long, or has an image that a text-only model cannot read.
        """
        if with_image and not self.template.image_tokens:
            raise RequestError("this model reads only text: ask without the image")
        turns, _ = parse_messages(conversation)
        for turn in turns:
            arguments.check_text(turn.text)
        return self._checked_length(self.template.chat(self.tokenizer, list(turns), with_image=with_image))

    def require_generation(self) -> None:
        """Raises `RequestError` if the bundle does not have all parts for generation."""
        self._require_part("queries", "chats, but generates no images")
        self._require_part("decoder", "generates features, but no images")

    def _check_features(self, features: object) -> None:
        shape = self.model.latent_shape
        if not isinstance(features, Tensor) or features.dim() != 3 or features.shape[1:] != shape or not len(features):
            found = list(features.shape) if isinstance(features, Tensor) else arguments.type_of(features)
            raise RequestError(
                f"features are {found}: give a tensor [n, {shape[0]}, {shape[1]}], as generate_features returns it"
            )

    def _require_part(self, part: str, ability: str) -> None:
        if not self.model.has(part):
            raise RequestError(f"this bundle has no {part} and {ability}: convert the checkpoint with its {part}")

    def _checked_length(self, ids: list[int]) -> list[int]:
        if len(ids) > self.max_length:
            raise PromptTooLongError(
                f"the prompt takes {len(ids)} tokens, this model reads {self.max_length}: shorten it"
            )
        return ids

    def _padded(self, rows: Sequence[list[int]], pixels: Tensor | None = None) -> Prompt:
        pad = self.tokenizer.ids[PAD]
        ids = torch.tensor([row + [pad] * (self.max_length - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(self.max_length) < lengths[:, None]).long()
        return Prompt(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), pixels=pixels)

    def _pixels(self, images: Sequence[Image.Image], size: int, resize: ResizeConfig = CROP) -> Tensor:
        return torch.from_numpy(np.stack([to_square(image, size, resize) for image in images])).to(self.device)
