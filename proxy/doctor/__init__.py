"""A real handshake, step by step: what is wrong, and what to change, in one sentence each.

1. The steps are done by the rooms that serve clients, so that what is found here is what clients would meet.
2. A step that cannot succeed because of another one is left out; what does not depend on that goes on.
3. Nothing of upstream's words is told, but numbers and the names in its certificate: it may quote what was sent.
4. What the proxy itself holds stays as it is: nothing is written, and no session is ended but the one begun here.
"""

from proxy.doctor.examination import examine
from proxy.doctor.findings import Finding, Verdict


__all__ = ["Finding", "Verdict", "examine"]
