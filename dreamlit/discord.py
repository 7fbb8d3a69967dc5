"""A run's events as messages of a Discord webhook: one embed each, with up to ten images."""

from __future__ import annotations

import json
import pathlib
import uuid

from dreamlit.events import (
    Checkpoint,
    Error,
    Event,
    Image,
    PreviewStep,
    Record,
    RunStage,
    Scores,
    TrainingStatus,
    ValidationImages,
    Warned,
    plain,
)

MOST_IMAGES = 10
MOST_IMAGE_BYTES = 8_000_000
"""Of one message; a webhook's limit depends on the server and has been as low as this."""
LONGEST_TITLE, LONGEST_TEXT = 256, 4000
COLOURS = {"debug": 0x95A5A6, "info": 0x3498DB, "warning": 0xF1C40F, "error": 0xE74C3C}
MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def discord_message(record: Record, dropped: int, root: pathlib.Path) -> tuple[bytes, str]:
    """Body and content type of a message about one record.

    Args:
        record: What to tell.
        dropped: Records right before it that were lost; the message says so.
        root: Folder of the run, which paths of images are relative to. An image that is gone or too large stays out.
    """
    title, text = told(record.event)
    footer = record.run + (f" ({dropped} messages before this one were lost)" if dropped else "")
    embed = {
        "title": cut(title, LONGEST_TITLE),
        "description": cut(text, LONGEST_TEXT),
        "color": COLOURS[record.event.level],
        "timestamp": record.to_json()["time"],
        "footer": {"text": footer},
    }
    # A prompt or an error may hold "@everyone": nobody is to be called by it.
    payload = json.dumps({"embeds": [embed], "allowed_mentions": {"parse": []}}).encode()
    files = image_files(record.event, root)
    return form(payload, files) if files else (payload, "application/json")


def told(event: Event) -> tuple[str, str]:
    """Title and text of an event."""
    match event:
        case RunStage():
            return f"Run {event.stage}", at_step(event.step, event.of)
        case TrainingStatus():
            loss = "not a number" if event.loss is None else f"{event.loss:.4f}"
            left = "" if event.left_s is None else f", {duration(event.left_s)} left"
            return "Training", f"{at_step(event.step, event.of)}, loss {loss}, {event.steps_per_s:.2f} steps/s{left}"
        case Checkpoint():
            title = "Final checkpoint" if event.final else "Checkpoint"
            return f"{title} at {at_step(event.step)}", "\n".join([event.path, *event.adapters])
        case PreviewStep():
            sampler = f"sampler step {event.sampler_step} of {event.of}"
            return f"Preview at {at_step(event.step)}", f"{event.prompt} (seed {event.seed}), {sampler}"
        case ValidationImages():
            return f"Images at {at_step(event.step)}", "\n".join(image_lines(event.images))
        case Scores():
            lines = (f"{name}: {values(of)}" for name, of in event.scores.items())
            return f"Scores at {at_step(event.step)}", "\n".join(lines)
        case Warned():
            return f"Warning at {at_step(event.step)}", event.message
        case Error():
            return event.type, event.message
        case _:
            return event.kind, at_step(event.step)


def at_step(step: int, of: int | None = None) -> str:
    return f"step {step}" if of is None else f"step {step} of {of}"


def duration(seconds: float) -> str:
    """A rough time span: "2 h 05 min", "12 min", "40 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def values(of: object) -> str:
    shown = {str(model): value for model, value in dict(of).items()}  # pyright: ignore
    return ", ".join(f"{model} {'-' if value is None else format(value, '.3f')}" for model, value in shown.items())


def image_lines(images: tuple[Image, ...]) -> list[str]:
    shown = images[:MOST_IMAGES]
    lines = []
    for number, image in enumerate(shown, 1):
        seed = "" if image.seed is None else f", seed {image.seed}"
        lines.append(f"{number}. {image.prompt or image.path} ({image.model}{seed})")
    return [*lines, f"{len(images) - len(shown)} more are in the run's folder"] if len(images) > len(shown) else lines


def image_files(event: Event, root: pathlib.Path) -> list[tuple[str, bytes]]:
    """Name and content of the images that go with an event."""
    paths: list[str] = []
    if isinstance(event, ValidationImages):
        paths = [image.path for image in event.images[:MOST_IMAGES]]
    elif isinstance(event, PreviewStep) and event.path:
        paths = [event.path]
    files, room = [], MOST_IMAGE_BYTES
    for number, path in enumerate(paths, 1):
        suffix = pathlib.PurePosixPath(path).suffix.lower()
        try:
            content = (root / path).read_bytes() if suffix in MEDIA else b""
        except OSError:
            continue
        if 0 < len(content) <= room:
            room -= len(content)
            files.append((f"{number:02d}{suffix}", content))
    return files


def form(payload: bytes, files: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    """A multipart/form-data body (RFC 7578) of the message and its files, and its content type."""
    boundary = uuid.uuid4().hex
    parts = [('name="payload_json"', "application/json", payload)]
    for number, (name, content) in enumerate(files):
        kind = MEDIA[pathlib.PurePosixPath(name).suffix]
        parts.append((f'name="files[{number}]"; filename="{name}"', kind, content))
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\nContent-Type: {kind}\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, kind, content in parts
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def cut(text: str, longest: int) -> str:
    """A text that Discord takes: not too long, and of whole characters."""
    text = plain(text)
    return text if len(text) <= longest else text[: longest - 3] + "..."
