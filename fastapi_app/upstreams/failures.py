"""Why a call to the internet had no answer. The texts are for people and name no address."""


class Unavailable(Exception):
    """No answer: as below, or a connection that broke, something that is not HTTP."""

    sentence = "It cannot be reached"

    def __init__(self) -> None:
        super().__init__(self.sentence)


class Timeout(Unavailable):
    """No complete answer in time."""

    sentence = "It did not answer in time"


class NoName(Unavailable):
    """The name of the host leads nowhere."""

    sentence = "Its name cannot be found"


class NoTrust(Unavailable):
    """No TLS, or a certificate that proves nothing."""

    sentence = "Its certificate cannot be trusted"


class Refused(Unavailable):
    """Nobody listens there."""

    sentence = "It refuses connections"


class CircuitOpen(Unavailable):
    """Not asked: it has failed too often."""

    sentence = "It has failed too often and is left alone for a while"


class TooBusy(Unavailable):
    """Not asked: the turn of this call would have come too late."""

    sentence = "Too many calls are waiting for it"


class TooLarge(Unavailable):
    """The body is larger than what the caller allows."""

    sentence = "Its answer is too large"


class AddressRefused(Unavailable):
    """Not asked: no address on the public internet, or not one that can be asked at all."""

    sentence = "Its address is not allowed"
