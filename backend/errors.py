"""What this package refuses, apart from what travels between its processes (`messages.ProtocolError`).

BackendError
├── PackageUnavailable   a package that is installed on demand could not be
├── TritonNotFound       no usable tritonserver on this machine, and none could be installed
├── StubUnusable         Triton's Python stub can't run here, or would corrupt tensors
├── CertificateUnusable  a file that TLS needs cannot be read, or does not belong to the others (node_tls.py)
├── SecretUnusable       the file with the cluster's secret is missing, open to others, or holds none (node_secret.py)
└── ModelRefused         a model that can't go into the model repository
    ├── InvalidModelName     a name that is no plain directory name
    ├── ModelExists          the repository has it already
    ├── UnsupportedSource    a source that we can't read from yet
    └── InvalidModelConfig   a checkpoint's config.json or a limit that makes no sense
"""

from __future__ import annotations


class BackendError(Exception):
    """Base: the message says what happened, to which model or file, and what to do."""


class PackageUnavailable(BackendError):
    pass


class TritonNotFound(BackendError):
    pass


class StubUnusable(BackendError):
    pass


class ModelRefused(BackendError):
    pass


class InvalidModelName(ModelRefused):
    pass


class ModelExists(ModelRefused):
    pass


class UnsupportedSource(ModelRefused):
    pass


class InvalidModelConfig(ModelRefused):
    pass
