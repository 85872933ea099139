"""A lease on object storage: an object that its holder renews, and that others may take when it does not.

No two wall clocks are compared. Who finds a lease watches it: when its tag does not change for a while of the watcher's
own monotonic clock, its holder is gone. Every write is conditional on the tag that was seen, so of several who take an
expired lease one wins, and a holder that was only slow finds out at its next renewal (a lease in the sense of Gray and
Cheriton 1989, with the clocks of the observers alone, as in Kubernetes' leader election).
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from astroclip_dist.errors import StorageError
from astroclip_dist.store import ChangedObjectError, MissingObjectError, ObjectTag, Store
from astroclip_dist.train.holding.holder import HeldError, Holder

RENEWAL_S = 15.0
# In renewals: a storage that is away for half a minute takes nobody's lease.
EXPIRY = 4
# A request that takes longer, in renewals, is given up; the next one comes.
_REQUEST = 2 / 3
_POLL = 1 / 15
log = logging.getLogger(__name__)


class LeaseContent(BaseModel):
    """What the object holds.

    Attributes:
        token: one for each lease ever taken.
        renewals: so that each renewal changes the object's tag.
    """

    model_config = ConfigDict(frozen=True)

    holder: Holder
    token: str
    renewals: int

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Content that is no lease is taken for that of an unknown holder, who does not renew."""
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            return cls(holder=Holder.parse(b""), token="", renewals=0)


class Lease:
    """This process's lease on a run."""

    def __init__(self, run: Store, name: str, holder: Holder, renewal_s: float = RENEWAL_S) -> None:
        """
        Args:
            renewal_s: seconds between two renewals; others take the lease when they saw none for ``EXPIRY`` times that.
        """
        self._run, self._name = Store(run.url, _REQUEST * renewal_s), name
        self._renewal_s, self._expiry_s = renewal_s, EXPIRY * renewal_s
        self._content = LeaseContent(holder=holder, token=uuid.uuid4().hex, renewals=0)
        self._tag = ObjectTag(None, None)
        self._over = threading.Event()

    @contextmanager
    def held(self, on_loss: Callable[[HeldError], None]) -> Iterator[None]:
        """Take the lease, renew it while within, and give it back.

        Args:
            on_loss: called once, by another thread, when somebody else has taken it.

        Raises:
            HeldError: another process has it and renews it. To see that takes up to one renewal where that process is
                on another machine, and ``EXPIRY`` of them to see that it does not.
            StorageError
        """
        self._take()
        renewing = threading.Thread(target=self._keep, args=(on_loss,), name="lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            self._over.set()
            renewing.join()
            self._give_back()

    def _take(self) -> None:
        seen: ObjectTag | None = None
        since = 0.0
        while True:
            looked = time.monotonic()
            try:
                data, tag = self._run.read_tagged(self._name)
            except MissingObjectError:
                try:
                    self._tag = self._run.put(self._name, self._bytes(), create_only=True)
                    return
                except FileExistsError:
                    continue
            found = LeaseContent.parse(data)
            if found.token == self._content.token:
                # Written by a request whose answer was lost.
                self._tag = tag
                return
            holder = found.holder
            if (holder.is_here and not holder.is_dead) or seen not in (None, tag):
                raise HeldError(self._run, holder)
            if holder.is_dead or (seen and looked - since > self._expiry_s):
                try:
                    self._tag = self._run.replace(self._name, self._bytes(), tag)
                except ChangedObjectError:
                    continue
                log.warning("%s was held by %s, which is gone", self._run.url, holder)
                return
            if seen is None:
                seen, since = tag, time.monotonic()
                log.info(
                    "%s is held by %s; in %.0f s at most it will be clear whether that is still there",
                    *(self._run.url, holder, self._expiry_s),
                )
            time.sleep(_POLL * self._renewal_s)

    def _keep(self, on_loss: Callable[[HeldError], None]) -> None:
        failing = False
        while not self._over.wait(self._renewal_s):
            try:
                self._renew()
            except HeldError as error:
                on_loss(error)
                return
            except StorageError as error:
                if not failing:
                    log.warning("the hold on the run cannot be renewed, trying on: %s", error)
                failing = True
            else:
                failing = False

    def _renew(self) -> None:
        """Raises HeldError when the lease is not this process's any more."""
        while True:
            self._content = self._content.model_copy(update={"renewals": self._content.renewals + 1})
            try:
                self._tag = self._run.replace(self._name, self._bytes(), self._tag)
                return
            except ChangedObjectError:
                try:
                    data, tag = self._run.read_tagged(self._name)
                except MissingObjectError:
                    data, tag = b"", self._tag
                found = LeaseContent.parse(data)
                if found.token != self._content.token:
                    raise HeldError(self._run, found.holder) from None
                # An earlier renewal that seemed to fail was written after all.
                self._tag = tag

    def _give_back(self) -> None:
        """Removed right after a renewal: for ``EXPIRY`` renewals from then on nobody else can have taken it."""
        try:
            self._renew()
            self._run.delete([self._name])
        except HeldError as error:
            log.warning("%s", error)
        except StorageError as error:
            log.warning("the hold on the run cannot be given back; it ends in %.0f s: %s", self._expiry_s, error)

    def _bytes(self) -> bytes:
        return self._content.model_dump_json().encode()
