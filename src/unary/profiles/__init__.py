"""What is particular to a kind of image. A new kind is one module here and one entry below."""

from __future__ import annotations

from unary.errors import ProfileError
from unary.profiles.general import GENERAL
from unary.profiles.mammography import MAMMOGRAPHY
from unary.profiles.profile import OTHER, Headers, Lengths, LesionGroup, Profile, Reading, is_among

PROFILES: dict[str, Profile] = {profile.name: profile for profile in (MAMMOGRAPHY, GENERAL)}
DEFAULT = MAMMOGRAPHY

__all__ = [
    "DEFAULT",
    "GENERAL",
    "OTHER",
    "PROFILES",
    "Headers",
    "Lengths",
    "LesionGroup",
    "Profile",
    "Reading",
    "find_profile",
    "is_among",
]


def find_profile(profile: str | Profile) -> Profile:
    """Return the profile of a name, or the one that is given; of an unknown name, a `ProfileError`."""
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise ProfileError(f"no profile is called {profile!r}; there are {', '.join(PROFILES)}")
    return PROFILES[profile]
