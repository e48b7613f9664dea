"""TLS between the scheduler and its nodes: each side shows a certificate, and takes only those of one authority."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from serverless_triton.backend.errors import BackendError


class CertificateUnusable(BackendError):
    """A certificate, its key or its authority cannot be read, or they do not belong together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTLS:
    """PEM files of one side; `ca_file` has the authority that signed the other's certificate."""

    certificate_file: Path
    key_file: Path
    ca_file: Path

    def server_credentials(self) -> grpc.ServerCredentials:
        """Of a node. Raises CertificateUnusable."""
        self.check()
        pair, ca = (self.key_file.read_bytes(), self.certificate_file.read_bytes()), self.ca_file.read_bytes()
        return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Of the scheduler. Raises CertificateUnusable."""
        self.check()
        key, certificate = self.key_file.read_bytes(), self.certificate_file.read_bytes()
        return grpc.ssl_channel_credentials(self.ca_file.read_bytes(), key, certificate)

    def own_name(self) -> str:
        """A name or an address that the certificate is for, as those who connect to it compare it.

        Raises CertificateUnusable where it has none.
        """
        self.check()
        names: dict[str, str] = dict(self._shown().get("subjectAltName", ()))
        name = names.get("DNS") or names.get("IP Address")
        if not name:
            raise CertificateUnusable(f"{self.certificate_file}: is for no name and no address (subjectAltName)")
        return name

    def _shown(self) -> Mapping[str, Any]:
        """The certificate as a client of it sees it: ssl tells of no other. Between two ends in memory."""
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        server.load_cert_chain(self.certificate_file, self.key_file, password="")
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        client.load_verify_locations(self.certificate_file)
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
        for end in (*ends, *ends):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        return ends[0].getpeercert() or {}

    def check(self) -> None:
        """gRPC itself would say nothing of what is wrong. Raises CertificateUnusable."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self.ca_file)
            # An empty password: one that is missing would be asked for on the terminal.
            context.load_cert_chain(self.certificate_file, self.key_file, password="")
        except OSError as error:
            files = f"{self.certificate_file}, {self.key_file}, {self.ca_file}"
            raise CertificateUnusable(f"TLS between scheduler and nodes: cannot use {files}: {error}") from error
