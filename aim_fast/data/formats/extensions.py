"""What a file of a data set is by its name: a video, what lies beside videos, or something that no clip is made of.

Extensions are of containers that PyAV's FFmpeg was seen to decode. A few are shared by videos and other files; those
are told apart by their first bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Literal

__all__ = ["ANY_EXTENSION", "HEAD", "VIDEO_EXTENSIONS", "Kind", "file_head", "file_kind", "hidden"]

Kind = Literal["video", "text", "beside", "unknown"]


def _extensions(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


VIDEO_EXTENSIONS = _extensions(
    "mp4 mp4v m4v mov qt mqv 3gp 3gpp 3g2 f4v ismv mj2 insv mkv mk3d webm avi divx xvid flv swf "
    "mpg mpeg mpe m1v m2v m2p ps pss vob vro evo mod tod ts mts m2ts m2t tp trp tts wmv asf wm wtv dvr-ms "
    "ogv ogm ogx mxf gxf dv dif rm rmvb nut ivf obu y4m h264 264 avc h265 265 hevc h261 h263 mjpeg mjpg "
    "gif apng roq"
)
ANY_EXTENSION = "|".join(map(re.escape, sorted(VIDEO_EXTENSIONS)))  # a pattern, to be read in any case
# about videos, or made of them: wherever these lie, nothing is lost
_TEXTS = _extensions(
    "txt md rst csv tsv json jsonl ndjson xml yaml yml toml ini cfg conf log html htm pdf doc docx odt rtf xls xlsx "
    "srt vtt ass ssa sub idx sbv ttml dfxp lrc smi sup stl py m sh ipynb js bib tex nfo diz "
    "npy npz pkl pickle pt pth mat h5 hdf5 parquet arrow feather safetensors bin db sqlite "
    "md5 sha1 sha256 sha512 crc sfv xmp ods eaf textgrid url lnk torrent cls label labels aim-fast lock bak"
)
_NAMES_OF_TEXTS = re.compile(
    r"(readme|licen[cs]e|copying|notice|authors|changelog|citation|makefile|(md5|sha\d*|check)_?sums?)\b", re.I
)
# beside videos no loss, but a class folder with nothing else holds a class that would be lost
_BESIDE = _extensions(
    "jpg jpeg png bmp tif tiff webp ppm pgm pnm svg heic heif avif ico psd thm exr hdr mpo "
    "wav mp3 m4a aac flac ogg oga opus wma aif aiff ac3 mid dat "
    "zip rar 7z tar gz tgz bz2 xz zst lrv cpi mpl bdm moi bup ifo"
)
HEAD = 4096  # bytes that tell what a file of a shared extension is
_BY_CONTENT: dict[str, Callable[[bytes], bool]] = {
    ".webp": lambda head: head[8:16] == b"WEBPVP8X" and bool(head[20] & 2),  # animated
    ".ogg": lambda head: b"\x80theora" in head or b"BBCD" in head,
    ".dat": lambda head: head[:4] == b"\0\0\1\xba" or (head[:4] == b"RIFF" and head[8:12] == b"CDXA"),  # video CD
}


def hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: ``._x.mp4`` is what macOS packs beside ``x.mp4``."""
    return name.startswith(".") or name == "__MACOSX"


def file_kind(name: str, head: Callable[[], bytes]) -> Kind:
    """What the file of this name is; ``head`` gives its first ``HEAD`` bytes where the name does not say."""
    extension = os.path.splitext(name)[1].lower()
    if extension in VIDEO_EXTENSIONS:
        return "video"
    if extension in _BY_CONTENT and _BY_CONTENT[extension](head().ljust(HEAD, b"\0")):
        return "video"
    if extension in _BESIDE:
        return "beside"
    return "text" if extension in _TEXTS or _NAMES_OF_TEXTS.match(name) else "unknown"


def file_head(path: str) -> bytes:
    """The first ``HEAD`` bytes of a file, none of one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""
