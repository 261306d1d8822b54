"""What a client is told when a service on the internet does not do what was hoped. One sentence for each way."""

from typing import NamedTuple

from ..http import ApiError


class Service(NamedTuple):
    """A service on the internet: `name` for people, `key` as in the settings (`<key>_url`, `<key>_per_second`)."""

    name: str
    key: str
    help_url: str


YOUTUBE = Service("YouTube", "youtube", "https://console.cloud.google.com/apis/library/youtube.googleapis.com")
IMVDB = Service("IMVDb", "imvdb", "https://imvdb.com/developers/api")
SPOTIFY = Service("Spotify", "spotify", "https://developer.spotify.com/dashboard")
LASTFM = Service("Last.fm", "lastfm", "https://www.last.fm/api/account/create")
WIKIPEDIA = Service("Wikipedia", "wikipedia", "https://www.mediawiki.org/wiki/API")


def not_configured(service: Service) -> ApiError:
    return ApiError(
        400,
        f"{service.name} is not configured",
        message=f"No key of {service.name} has been stored",
        action="Store it in the settings",
        help_url=service.help_url,
    )


class KeyRefused(ApiError):
    """`was` is the status with which the service refused it."""

    was = 0


def key_refused(service: Service, was: int = 0) -> KeyRefused:
    error = KeyRefused(
        400,
        f"{service.name} refused the key",
        message=f"The key of {service.name} is wrong, or it has been withdrawn",
        action="Store another one in the settings",
        help_url=service.help_url,
    )
    error.was = was
    return error


def quota_used_up(service: Service) -> ApiError:
    return ApiError(429, f"The quota of {service.name} is used up")


def asked_to_wait(service: Service, seconds: int) -> ApiError:
    return ApiError(429, f"{service.name} asks to wait", {"Retry-After": str(seconds)})


def not_found(service: Service, what: str) -> ApiError:
    """`what` begins with a capital: "Artist"."""
    return ApiError(404, f"{what} not found on {service.name}")


def unavailable(service: Service) -> ApiError:
    """Down, too slow, or not asked at all since it has failed too often."""
    return ApiError(502, f"{service.name} is not available")


def nonsense(service: Service) -> ApiError:
    """An answer that is no JSON, has the wrong types or is too large."""
    return ApiError(502, f"{service.name} gave an answer that makes no sense")
