"""`<image>` and `<video>` in questions: which of them stand for the media of a sample, and which are words."""

import re
from collections.abc import Sequence

from aurora.errors import AuroraError, BadSample
from aurora.interfaces import Turn

_MARKER = re.compile(r"<(image|video)>")
Marker = tuple[int, re.Match[str]]
"""The number of the turn that a tag stands in, and the tag."""


def place_media(turns: Sequence[Turn], kind: str, media: int) -> tuple[Turn, ...]:
    """The turns without the markers of so many media of a kind ("image" or "video"); BadSample unless there is
    none, or as many as media.

    Where text stands between the markers of several images, `Turn.places` says where. Tags that are not markers stay:
    in answers, inside a text that shows nothing, and beside as many markers as media. One `<video>` may stand for all
    the frames of a video, `<image>` for a video.
    """
    found = [(number, tag) for number, turn in enumerate(turns) if "<" in turn.question
             for tag in _MARKER.finditer(turn.question)]
    if not found:
        return tuple(turns)
    chosen = _markers(turns, found, kind, media)
    between = False
    if media > 1 and chosen:
        (first, opening), (last, closing) = chosen[0], chosen[-1]
        text = turns[first].question[opening.end():closing.start()]
        between = first != last or bool(_MARKER.sub("", text).strip())
    tags = [[tag for where, tag in chosen if where == number] for number in range(len(turns))]
    return tuple(_without(turn, inside, keep_places=between) if inside else turn
                 for turn, inside in zip(turns, tags, strict=True))


def plain_question(text: str, media: int) -> str:
    """A question about so many images or videos as `place_media` leaves it, or without the tags that begin or end it
    when they are not as many. AuroraError for one that is not text, such as bytes on a command line that are not
    UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AuroraError(f"the question {text!r} is not text: {error}") from error
    if not media:
        return text
    tags = [*_MARKER.finditer(text)]
    edges = [tag for tag in tags if _at_edge(text, tag)]
    kind = next((tag[1] for tag in edges or tags), "image")
    try:
        return place_media([Turn(text)], kind, media)[0].question
    except BadSample:
        return _without(Turn(text), edges, keep_places=False).question


def _markers(turns: Sequence[Turn], found: Sequence[Marker], kind: str, media: int) -> Sequence[Marker]:
    own = [one for one in found if one[1][1] == kind]
    if len(own) == media > 0:
        return own
    edges = [(number, tag) for number, tag in found if _at_edge(turns[number].question, tag)]
    if not media:
        if edges:
            raise BadSample("markers", f"{edges[0][1][0]} stands in a question, but no image or video is named")
        return ()
    own_edges = [one for one in edges if one in own]
    if len(own_edges) == media:
        return own_edges
    text = turns[found[0][0]].question
    if not own and len(found) == 1 and (kind, media) != ("image", 1) and f"</{found[0][1][1]}>" not in text:
        return found  # of the other kind: <image> for a video, or <video> for all of its frames
    if own or len(edges) > 1:
        tag = (own or edges)[0][1][0]
        raise BadSample("markers", f"{tag} stands in the questions {len(own or edges)} times, but the sample has "
                                   f"{media} {kind}{'s' * (media > 1)}")
    return edges


def _at_edge(text: str, tag: re.Match[str]) -> bool:
    """Whether a tag begins or ends a question, other tags apart, and is not an element of HTML."""
    around = (text[:tag.start()], text[tag.end():])
    return f"</{tag[1]}>" not in text and any(not _MARKER.sub("", part).strip() for part in around)


def _without(turn: Turn, tags: Sequence[re.Match[str]], *, keep_places: bool) -> Turn:
    """A turn without some tags, and the places where they stood."""
    text, places, at = "", [], 0
    for tag in [*tags, None]:
        part = turn.question[at:tag.start() if tag else None]
        if at and part.strip():  # one space in the place of a tag
            part = part.lstrip(" ")
            text = text if not text or text[-1].isspace() or part[0].isspace() else text + " "
        text += part
        if tag:
            places.append(len(text))
            at = tag.end()
    return turn._replace(question=text, places=tuple(places) if keep_places else ())
