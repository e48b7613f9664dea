"""TLS towards clients, from the PEM files of the settings: one certificate for HTTP, gRPC and metrics."""

from __future__ import annotations

import ssl

import grpc

from serverless_triton.scheduler.errors import CertificateUnusable
from serverless_triton.scheduler.gateway.settings import ServerTLS


def http_context(tls: ServerTLS) -> ssl.SSLContext:
    """For TLS 1.2 and later. Raises CertificateUnusable."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # An empty password: one that is missing would be asked for on the terminal.
        context.load_cert_chain(tls.certificate_file, tls.key_file, password="")
        if tls.client_ca_file is not None:
            context.load_verify_locations(tls.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        files = ", ".join(str(file) for file in (tls.certificate_file, tls.key_file, tls.client_ca_file) if file)
        raise CertificateUnusable(f"gateway.tls: cannot use {files}: {error}") from error
    return context


def grpc_credentials(tls: ServerTLS) -> grpc.ServerCredentials:
    """Raises CertificateUnusable."""
    http_context(tls)  # gRPC itself would say nothing of what is wrong
    pair = (tls.key_file.read_bytes(), tls.certificate_file.read_bytes())
    if tls.client_ca_file is None:
        return grpc.ssl_server_credentials([pair])
    return grpc.ssl_server_credentials([pair], tls.client_ca_file.read_bytes(), require_client_auth=True)
