"""Credentials in addresses: found, so that they are refused, and masked wherever a text may still hold them.

``scheme://user:password@host``, and parameters of a query that sign it or carry a key (``?sig=…``, ``&X-Amz-…=…``).
A name of a user without a password is none.
"""

from __future__ import annotations

import re

#: What stands in place of a credential.
MASK = "***"

#: What to do about credentials in an address.
CREDENTIALS_FIX = (
    "write the address without them; drivers read credentials from the environment or their own files "
    "(for s3:// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials)"
)

_LOGIN = re.compile(r"(?<=://)([^\s/?#@:'\"]*:)([^\s/?#'\"]+)(?=@)")
_PARAMETER = re.compile(
    r"([?&](?:x-amz-[\w-]+|x-goog-[\w-]+|sig|signature|sv|se|sp|awsaccesskeyid|googleaccessid|"
    r"[\w-]*(?:token|secret|password|passwd|credentials?|api[_-]?key|access[_-]?key|account[_-]?key))=)([^\s&#'\"]+)",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """The text without credentials in its addresses.

    >>> masked("copying s3://key:hidden@bucket/a.svs and https://host/b.svs?sv=1&sig=hidden")
    'copying s3://***@bucket/a.svs and https://host/b.svs?sv=***&sig=***'
    """
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\g<1>{MASK}", _LOGIN.sub(MASK, text))


def has_credentials(address: str) -> bool:
    """Whether an address holds what nobody but its owner may read.

    >>> has_credentials("s3://key:hidden@bucket/a"), has_credentials("ssh://user@host/a"), has_credentials("a:b@c")
    (True, False, False)
    """
    return masked(address) != address
