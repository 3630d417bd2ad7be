"""How the API server is reached: by the pod's service account, or by a kubeconfig where one is given."""

from __future__ import annotations

from dataclasses import dataclass

from kubernetes.aio import client, config


@dataclass(frozen=True, slots=True)
class Connection:
    """How the API server is reached, for other HTTP clients."""

    server: str
    ca_path: str | None
    certificate_path: str | None
    private_key_path: str | None
    authorization: str | None
    """Value of the Authorization header, such as `Bearer …`."""
    verify: bool


async def read_configuration(kubeconfig: str | None, context: str | None) -> client.Configuration:
    """The pod's service account, or a kubeconfig where one is given."""
    configuration = client.Configuration()
    if kubeconfig is None:
        config.load_incluster_config(client_configuration=configuration)
    else:
        await config.load_kube_config(
            config_file=kubeconfig, context=context, client_configuration=configuration
        )
    return configuration


async def read_connection(kubeconfig: str | None, context: str | None) -> Connection:
    """The same connection in plain values, read again: service account tokens rotate."""
    configuration = await read_configuration(kubeconfig, context)
    header = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
    return Connection(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        authorization=header,
        verify=bool(configuration.verify_ssl),
    )
