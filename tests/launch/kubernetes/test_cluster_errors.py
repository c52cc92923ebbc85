"""What a cluster refuses, or that there is none, is said so that a person can act on it."""

import socket
import ssl
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from distrain.errors import ExitCode
from launch.kubernetes.cluster_errors import retry_after_s
from launch.kubernetes.connection import connect
from tests.api_server import ApiServer
from tests.cluster_objects import Commands, ended, job
from tests.conftest import ROOT, clean_environment

DIGITS = ROOT / "examples" / "digits.toml"


def submit(run: Commands, *options: object) -> tuple[int, str]:
    said = run("submit", "kubernetes", DIGITS, "--form", "job", *options)
    return said.code, said.told


def status(run: Commands, *options: object) -> tuple[int, str]:
    said = run("kubernetes", "status", "digits", *options)
    return said.code, said.told


def test_401_asks_to_log_in_anew(server: ApiServer, run: Commands) -> None:
    server.fail("GET", "/trainjobs/", 401, "Unauthorized")
    code, told = status(run)
    assert code == ExitCode.CONFIG
    assert "doesn't know who is asking (401 Unauthorized)" in told
    assert "log in to the cluster anew" in told


def test_403_names_the_verb_and_the_resource_that_are_missing(
    server: ApiServer, run: Commands
) -> None:
    message = (
        'jobs.batch is forbidden: User "someone" cannot create resource "jobs" in API group '
        '"batch" in the namespace "ml"'
    )
    server.fail("POST", "/jobs$", 403, message)
    code, told = submit(run)
    assert code == ExitCode.CONFIG
    assert "you may not create jobs.batch in namespace ml" in told
    assert "ask for a role there with the verb 'create' on 'jobs.batch'" in told
    assert 'User "someone"' in told
    assert server.names() == []


def test_403_of_a_quota_or_a_policy_is_not_taken_for_a_missing_role(
    server: ApiServer, run: Commands
) -> None:
    server.fail("POST", "/jobs$", 403, "exceeded quota: gpus, requested: 8, used: 4, limited: 8")
    code, told = submit(run)
    assert code == ExitCode.CONFIG
    assert "forbids to create jobs.batch in namespace ml: exceeded quota: gpus" in told
    assert "ask for a role" not in told


def test_404_of_a_namespace_names_it(server: ApiServer, run: Commands) -> None:
    server.fail("POST", "/configmaps", 404, 'namespaces "nowhere" not found')
    code, told = submit(run, "-n", "nowhere")
    assert code == ExitCode.CONFIG
    assert 'namespace nowhere (namespaces "nowhere" not found): check --namespace' in told


def test_409_that_is_none_of_the_name_is_shown_as_it_is(server: ApiServer, run: Commands) -> None:
    server.fail("POST", "/jobs$", 409, "the object has been modified", told={"reason": "Conflict"})
    code, told = submit(run)
    assert code == ExitCode.WORKER_LOST
    assert "refuses to create jobs.batch: the object has been modified" in told
    assert server.names() == []


@pytest.mark.parametrize("answered", [400, 422])
def test_422_shows_every_field_at_fault(server: ApiServer, run: Commands, answered: int) -> None:
    causes = [
        {"field": "spec.parallelism", "message": "Invalid value: -1: must be at least 0"},
        {"field": "spec.template.spec.restartPolicy", "message": "Unsupported value"},
    ]
    told = {"reason": "Invalid", "details": {"causes": causes}}
    server.fail("POST", "/jobs$", answered, "Job.batch is invalid", told=told)
    said = run("submit", "kubernetes", DIGITS, "--form", "job")
    assert said.code == ExitCode.CONFIG
    assert "\n  spec.parallelism: Invalid value: -1: must be at least 0\n" in said.err
    assert "\n  spec.template.spec.restartPolicy: Unsupported value\n" in said.err


def test_429_is_asked_again_after_the_time_that_the_server_names(
    server: ApiServer, run: Commands
) -> None:
    server.put(job())
    server.fail("GET", "/jobs/digits", 429, "too many requests", headers={"Retry-After": "1"})
    assert status(run)[0] == ExitCode.DONE
    first, second = server.asked("GET", "/jobs/digits")
    assert second.time_s - first.time_s >= 1.0


def test_the_time_that_a_server_may_name_has_a_bound() -> None:
    assert retry_after_s({"Retry-After": "3600"}) == 30.0
    assert retry_after_s({"Retry-After": "7"}) == 7.0
    assert retry_after_s({"Retry-After": "Fri, 31 Dec 2027 23:59:59 GMT"}) is None
    assert retry_after_s({}) is None


@pytest.mark.parametrize("answered", [429, 500, 503])
def test_a_server_that_stays_busy_is_given_up(
    server: ApiServer, run: Commands, monkeypatch: pytest.MonkeyPatch, answered: int
) -> None:
    monkeypatch.setattr("urllib3.util.retry.time.sleep", lambda _: None)
    server.put(job())
    server.fail("GET", "/jobs/digits", answered, "one moment, please", times=-1)
    code, told = status(run)
    assert code == ExitCode.WORKER_LOST
    assert f"({answered} one moment, please); try again later" in told
    assert len(server.asked("GET", "/jobs/digits")) == 5


@pytest.mark.parametrize("answered", [0, 500, 503])
def test_what_passes_is_tried_again_and_not_told(
    server: ApiServer, run: Commands, answered: int
) -> None:
    server.put(job())
    server.fail("GET", "/jobs/digits", answered, "one moment")
    said = run("kubernetes", "status", "digits")
    assert (said.code, said.err) == (ExitCode.DONE, "")


def test_a_proxy_that_answers_in_its_own_way_is_shown(server: ApiServer, run: Commands) -> None:
    server.fail("GET", "/trainjobs/", 407, headers={"Content-Type": "text/html"})
    code, told = status(run)
    assert code == ExitCode.CONFIG
    assert "407" in told


def test_a_connection_that_is_refused_names_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as mine, ApiServer() as server:
        mine.bind(("127.0.0.1", 0))  # and so nobody else's, who might answer
        url = f"http://127.0.0.1:{mine.getsockname()[1]}"
        code, told = status(Commands(server.kubeconfig(tmp_path, server=url), capsys))
    assert code == ExitCode.WORKER_LOST
    assert f"the cluster's API server at {url} can't be reached" in told
    assert "Connection refused" in told


def test_a_server_that_is_not_the_one_trusted_is_a_matter_of_the_kubeconfig(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    named = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
    files = ("-keyout", str(key), "-out", str(certificate))
    words = ["openssl", "req", "-x509", *made, *named, *files]
    subprocess.run(words, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with ApiServer(tls=tls) as server:
        trusted = server.kubeconfig(tmp_path, **{"certificate-authority": str(certificate)})
        assert status(Commands(trusted, capsys))[0] == ExitCode.USAGE  # reached: there is no job
        code, told = status(Commands(server.kubeconfig(tmp_path), capsys))
    assert code == ExitCode.CONFIG
    assert "is not the server that the kubeconfig trusts" in told
    assert "certificate-authority" in told


def test_without_a_kubeconfig_no_cluster_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = status(Commands(tmp_path / "none", capsys))
    assert code == ExitCode.CONFIG
    assert f"there is no kubeconfig at {tmp_path / 'none'}, so no cluster is known" in told


def test_the_usual_places_of_a_kubeconfig_are_looked_at(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = server.kubeconfig(tmp_path)
    known = Namespace(kubeconfig=None, context=None, namespace=None)
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'none'}:{config}")
    assert connect(known).host == server.url
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kube").mkdir()
    config.rename(tmp_path / ".kube" / "config")
    cluster = connect(known)
    assert (cluster.host, cluster.namespace) == (server.url, "ml")


@pytest.mark.parametrize("text", ["", "[", "kind: Config", "clusters: 7\ncontexts: 3"])
def test_a_damaged_kubeconfig_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    config = tmp_path / "damaged"
    config.write_text(text)
    code, told = status(Commands(config, capsys))
    assert code == ExitCode.CONFIG
    assert f"the kubeconfig {config} can't be used" in told


def test_a_cluster_behind_a_proxy_is_asked_through_it(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.put(job())
    behind = {"server": "http://cluster.invalid:6443", "proxy-url": server.url}
    assert status(Commands(server.kubeconfig(tmp_path, **behind), capsys))[0] == ExitCode.DONE


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("cluster", {"server": "cluster:6443"}, "the server of its cluster is 'cluster:6443'"),
        ("cluster", {"proxy-url": "socks5://proxy:1080"}, "the proxy-url of its cluster is 'socks"),
        ("cluster", {"proxy-url": 7}, "the proxy-url of its cluster is 7; http://"),
        ("cluster", {"certificate-authority": "/nowhere", "server": "https://a"}, "/nowhere"),
        ("user", {"token": "hunter2\n"}, "there are signs in the kubeconfig's token"),
        ("user", {"tokenFile": "/nowhere"}, "No such file"),
        (
            "user",
            {"auth-provider": {"name": "oidc", "config": {"client-secret": "hunter2"}}},
            "Expected key id-token",
        ),
        ("context", {"namespace": "../x"}, "is '../x'; give at most 63"),
    ],
)
def test_what_can_not_be_used_of_a_kubeconfig_is_named_and_no_secret_told(
    server: ApiServer, run: Commands, tmp_path: Path, part: str, change: dict[str, str], said: str
) -> None:
    config = tmp_path / "kubeconfig"
    known = yaml.safe_load(config.read_text())
    if part == "user":
        known["users"][0]["user"] = {}
    known[f"{part}s"][0][part] |= change
    config.write_text(yaml.safe_dump(known))
    code, told = status(run)
    assert code == (ExitCode.USAGE if part == "context" else ExitCode.CONFIG)
    assert said in told
    assert "hunter2" not in told
    assert server.requests == []


def test_a_namespace_may_begin_with_a_figure(run: Commands) -> None:
    code, told = status(run, "-n", "0prod")
    assert code == ExitCode.USAGE
    assert "there is no job digits in namespace 0prod" in told


def test_a_context_that_is_not_there_is_refused_with_those_that_are(run: Commands) -> None:
    code, told = status(run, "--context", "prod")
    assert code == ExitCode.CONFIG
    assert "has no context 'prod'; it has stub" in told


def test_without_the_client_its_installation_is_named(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['kubernetes'] = None\n"
        "from launch.main import main; main(['kubernetes', 'status', 'digits'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.CONFIG
    assert "pip install 'distrain[kubernetes]'" in done.stderr


def with_plugin(server: ApiServer, folder: Path, program: str) -> Path:
    """The server's kubeconfig, with a program in the place of its token."""
    config = server.kubeconfig(folder)
    known = yaml.safe_load(config.read_text())
    version = "client.authentication.k8s.io/v1"
    plugin = {"apiVersion": version, "command": sys.executable, "args": ["-c", program]}
    known["users"][0]["user"] = {"exec": {**plugin, "interactiveMode": "Never"}}
    config.write_text(yaml.safe_dump(known))
    return config


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('session expired: log in')", "session expired: log in"),
        ("print('no JSON')", "failed to decode process output"),
        ("print('{}')", "missing key 'apiVersion'"),
    ],
    ids=["fails", "no JSON", "no credentials"],
)
def test_a_program_for_credentials_that_fails_is_told_and_nobody_asked(
    server: ApiServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    program: str,
    said: str,
) -> None:
    code, told = status(Commands(with_plugin(server, tmp_path, program), capsys))
    assert code == ExitCode.CONFIG
    assert "the program that the kubeconfig" in told
    assert "has for the credentials of 'someone' failed: " in told
    assert said in told
    assert server.requests == []


def test_credentials_that_expire_are_asked_for_again_while_a_job_is_followed(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    program = (
        "import json, os, pathlib\n"
        f"given = pathlib.Path({str(given)!r})\n"
        "number = len(given.read_text()) if given.exists() else 0\n"
        "given.write_text('x' * (number + 1))\n"
        "expires = '2020-01-01T00:00:00Z' if not number else '2099-01-01T00:00:00Z'\n"
        "status = {'token': f'token-{number}', 'expirationTimestamp': expires}\n"
        "version = json.loads(os.environ['KUBERNETES_EXEC_INFO'])['apiVersion']\n"
        "print(json.dumps({'apiVersion': version, 'kind': 'ExecCredential', 'status': status}))\n"
    )
    server.put(job(status=ended("Complete")))
    run = Commands(with_plugin(server, tmp_path, program), capsys)
    assert run("kubernetes", "follow", "digits").code == ExitCode.DONE
    assert {each.token for each in server.requests} == {"Bearer token-1"}


def test_who_is_asked_by_nobody_says_so(server: ApiServer, run: Commands) -> None:
    message = 'jobs.batch is forbidden: User "system:anonymous" cannot get resource "jobs"'
    server.fail("GET", "/jobs/", 403, message)
    code, told = status(run)
    assert code == ExitCode.CONFIG
    assert "the cluster was asked by nobody" in told
    assert "ask for a role" not in told
