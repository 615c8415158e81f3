//! Providers and their ways, keys of every kind, certificates and rights: against servers that insist.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kloset_mount::store::{
    Addressing, Bucket, Encryption, KeyPair, Network, Outage, ReadAgain, RetryOptions, S3Options, Secret, Store,
    StoreError,
};

use crate::support::guard::{Asked, Guard, answer, empty_listing, pem, refusal};
use crate::support::program::{Program, may_mount};
use crate::support::rights;
use crate::support::s3::{S3Server, S3ServerOptions};

const CUSTOMER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A real server and what the program has at home.
struct Case {
    server: S3Server,
    home: tempfile::TempDir,
}

impl Case {
    fn new() -> Case {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("s3");
        let options = S3ServerOptions { folder: &folder, bucket: "bucket", access_key: "K", secret_key: "S", port: 0 };
        let server = S3Server::start(&options).unwrap();
        fs::create_dir_all(home.path().join(".aws/sso/cache")).unwrap();
        fs::create_dir(home.path().join("source")).unwrap();
        fs::write(home.path().join("source/file"), "content").unwrap();
        fs::write(home.path().join("key"), "ab".repeat(32)).unwrap();
        Case { server, home }
    }

    fn run(&self, line: &str, variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command.args(line.split_whitespace()).env_clear().env("HOME", self.home.path()).stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("KLOSET_KEY_FILE", self.home.path().join("key"));
        command.envs(variables.iter().copied()).output().unwrap()
    }

    #[track_caller]
    fn done(&self, line: &str, variables: &[(&str, &str)]) -> String {
        let output = self.run(line, variables);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Adds the bucket as `s3`, as it is reached by a port.
    fn add(&self, port: u16, more: &str) {
        self.done(&format!("store add s3 s3://127.0.0.1:{port}/bucket/k use_tls=false {more}"), &[]);
    }

    fn config(&self) -> String {
        fs::read_to_string(self.home.path().join(".config/kloset-mount/config.toml")).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn options() -> S3Options {
    S3Options {
        access_key: Some("K".to_owned()),
        secret_access_key: Some("S".into()),
        use_tls: false,
        retry: RetryOptions { times_max: 1, ..RetryOptions::default() },
        ..S3Options::default()
    }
}

fn open(at: &str, options: &S3Options) -> Store {
    Store::open(&format!("s3://{at}").parse().unwrap(), options).unwrap()
}

/// Insists on a region, as AWS, MinIO and Garage do.
fn only_fr_par(asked: &Asked) -> Option<String> {
    match asked.region() {
        "fr-par" => None,
        _ => refusal("400 Bad Request", "AuthorizationHeaderMalformed", "<Region>fr-par</Region>"),
    }
}

#[tokio::test]
async fn a_region_that_the_server_names_is_taken_after_one_refusal() {
    let case = Case::new();
    let guard = Guard::before(case.server.port, only_fr_par);
    let store = open(&format!("127.0.0.1:{}/bucket", guard.port), &options());
    store.put_new("packs/1", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(store.get("packs/1", 10).await.unwrap(), "x");
    assert_eq!(store.list("packs").await.unwrap().len(), 1);
    assert_eq!(store.learned_region().as_deref(), Some("fr-par"));
    let regions: Vec<_> = guard.asked().iter().map(|asked| asked.region().to_owned()).collect();
    assert_eq!(regions, ["us-east-1", "fr-par", "fr-par", "fr-par"]);
    let location = format!("s3://127.0.0.1:{}/bucket", guard.port).parse().unwrap();
    let bucket = Bucket::open(&location, &options()).unwrap();
    bucket.list(|_| true).await.unwrap();
    assert_eq!(bucket.learned_region().as_deref(), Some("fr-par"));
}

#[tokio::test]
async fn a_server_that_insists_on_nothing_possible_is_not_asked_for_ever() {
    let wrong = |_: &Asked| refusal("400 Bad Request", "AuthorizationHeaderMalformed", "<Region>a/b</Region>");
    let guard = Guard::before(0, wrong);
    let store = open(&format!("127.0.0.1:{}/bucket", guard.port), &options());
    let error = store.list("").await.unwrap_err();
    assert!(matches!(error, StoreError::WrongRegion { .. }), "{error}");
    assert_eq!(guard.asked().len(), 1);
}

#[test]
fn a_region_that_was_learned_is_in_the_config() {
    let case = Case::new();
    let guard = Guard::before(case.server.port, only_fr_par);
    case.add(guard.port, "access_key=K secret_access_key=S");
    case.done("store ping s3", &[]);
    assert!(case.config().contains("region = \"fr-par\""), "{}", case.config());
    case.done("store set s3 region nl-ams", &[]);
    let output = case.run("store ping s3", &[]);
    assert!(text(&output.stderr).contains("the region of @s3 is fr-par"), "{}", text(&output.stderr));
    case.done("store ping s3", &[]);
    let regions: Vec<_> = guard.asked().iter().map(|asked| asked.region().to_owned()).collect();
    assert_eq!(regions, ["us-east-1", "fr-par", "nl-ams", "fr-par", "fr-par"]);
}

#[tokio::test]
async fn addressing_and_the_path_of_the_endpoint_are_seen_by_the_server() {
    let guard = Guard::before(0, |_| empty_listing());
    for (addressing, host, start) in [
        (Addressing::Virtual, "bucket.localhost", "/s3/v1/?"),
        (Addressing::Path, "localhost", "/s3/v1/bucket?"),
        (Addressing::Auto, "localhost", "/s3/v1/bucket?"),
    ] {
        let options = S3Options { addressing, endpoint_path: "s3/v1".to_owned(), ..options() };
        open(&format!("localhost:{}/bucket", guard.port), &options).list("").await.unwrap();
        let asked = guard.asked().pop().unwrap();
        assert_eq!(asked.header("host"), format!("{host}:{}", guard.port));
        let target = asked.target.replace("/?", "?");
        assert!(target.starts_with(&start.replace("/?", "?")), "{addressing:?}: {}", asked.target);
    }
}

#[tokio::test]
async fn a_key_of_the_customer_goes_along_with_contents_and_not_with_listings() {
    let case = Case::new();
    let guard = Guard::before(case.server.port, |_| None);
    let encryption = Encryption { customer_key: Some(CUSTOMER_KEY.into()), ..Encryption::default() };
    let store = open(&format!("127.0.0.1:{}/bucket", guard.port), &S3Options { encryption, ..options() });
    // What the real server says of it does not matter here.
    let _ = store.put_new("packs/1", Bytes::from_static(b"x")).await;
    let _ = store.get("packs/1", 10).await;
    let _ = store.list("").await;
    let said: Vec<_> = guard.asked().into_iter().map(|asked| (has_customer_key(&asked), asked.method)).collect();
    assert_eq!(said.first(), Some(&(true, "PUT".to_owned())));
    assert!(said.contains(&(true, "GET".to_owned())));
    assert_eq!(said.last(), Some(&(false, "GET".to_owned())));
}

fn has_customer_key(asked: &Asked) -> bool {
    let header = |end: &str| asked.header(&format!("x-amz-server-side-encryption-customer-{end}"));
    let has = header("key") == CUSTOMER_KEY && header("algorithm") == "AES256";
    assert_eq!(has, header("key-md5") == "tP/LI3N87DFaSk0aoqYgzg==");
    has
}

#[test]
fn packs_of_content_alone_go_into_the_class_of_storage() {
    let case = Case::new();
    let guard = Guard::before(case.server.port, |_| None);
    let more = "session_token=T sse=AES256 storage_class=REDUCED_REDUNDANCY";
    case.add(guard.port, &format!("access_key=K secret_access_key=S {more}"));
    case.done("at @s3 create", &[]);
    case.done(&format!("at @s3 backup {}", case.home.path().join("source").display()), &[]);
    let asked = guard.asked();
    assert!(asked.iter().all(|asked| asked.header("x-amz-security-token") == "T"));
    let puts: Vec<_> = asked.iter().filter(|asked| asked.method == "PUT").collect();
    assert!(puts.iter().all(|put| put.header("x-amz-server-side-encryption") == "AES256"));
    let classed = |put: &&&Asked| put.header("x-amz-storage-class") == "REDUCED_REDUNDANCY";
    let in_class: Vec<_> = puts.iter().filter(classed).collect();
    // One pack of content; one of trees, an index run, a snapshot, a key slot and the header are not in it.
    assert_eq!(in_class.len(), 1, "{in_class:?}");
    assert!(in_class[0].target.contains("/packs/"));
    let packs = puts.iter().filter(|put| put.target.contains("/packs/")).count();
    assert_eq!((packs, puts.len()), (2, 6));
}

#[tokio::test]
async fn keys_that_run_out_are_read_again_and_the_request_goes_on() {
    let case = Case::new();
    let expired = |asked: &Asked| match asked.header("authorization").contains("Credential=OLD/") {
        true => refusal("400 Bad Request", "ExpiredToken", ""),
        false => None,
    };
    let guard = Guard::before(case.server.port, expired);
    let pair = KeyPair { access_key: "K".to_owned(), secret_access_key: "S".into(), session_token: None };
    let old = S3Options { access_key: Some("OLD".to_owned()), ..options() };
    let at = format!("127.0.0.1:{}/bucket", guard.port);
    let error = open(&at, &old).list("").await.unwrap_err();
    assert!(error.to_string().contains("the session token has run out"), "{error}");
    let again = S3Options { read_again: Some(ReadAgain(Arc::new(move || Ok(pair.clone())))), ..old };
    let store = open(&at, &again);
    store.list("").await.unwrap();
    store.list("").await.unwrap();
    assert_eq!(guard.asked().len(), 1 + 2 + 1);
}

#[test]
fn keys_of_a_command_are_taken_anew_by_the_program() {
    let case = Case::new();
    let expired = |asked: &Asked| match asked.header("authorization").contains("Credential=K1/") {
        true => refusal("403 Forbidden", "ExpiredToken", ""),
        false => None,
    };
    let guard = Guard::before(case.server.port, expired);
    case.add(guard.port, "secret_access_key=S");
    let (script, count) = (case.home.path().join("key.sh"), case.home.path().join("count"));
    let lines = format!("echo x >> {0}; if [ $(wc -l < {0}) = 1 ]; then echo K1; else echo K; fi", count.display());
    fs::write(&script, lines).unwrap();
    let set = ["store", "set", "s3", "access_key_command", &format!("sh {}", script.display())];
    let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
    assert!(command.args(set).env_clear().env("HOME", case.home.path()).status().unwrap().success());
    case.done("store ping s3", &[]);
    assert_eq!(fs::read_to_string(count).unwrap().lines().count(), 2);
}

/// Gives the keys of the real server as services of AWS do, each in its way.
fn aws(asked: &Asked) -> Option<String> {
    let path = asked.target.split('?').next().unwrap_or("");
    let names = r#""AccessKeyId":"K","SecretAccessKey":"S","Token":"T","Expiration":"2099-01-01T00:00:00Z""#;
    match (asked.method.as_str(), path) {
        ("GET", "/container") => answer("200 OK", &format!("{{{names}}}")),
        ("PUT", "/latest/api/token") => Some(
            "HTTP/1.1 200 OK\r\nx-aws-ec2-metadata-token-ttl-seconds: 60\r\ncontent-length: 5\r\nconnection: close\r\n\r\ntoken"
                .to_owned(),
        ),
        ("GET", "/latest/meta-data/iam/security-credentials/") => answer("200 OK", "role"),
        ("GET", "/latest/meta-data/iam/security-credentials/role") => {
            assert_eq!(asked.header("x-aws-ec2-metadata-token"), "token", "the second version of the protocol");
            answer("200 OK", &format!(r#"{{"Code":"Success","Type":"AWS-HMAC","LastUpdated":"2020-01-01T00:00:00Z",{names}}}"#))
        }
        ("GET", "/federation/credentials") => {
            assert_eq!(asked.header("x-amz-sso_bearer_token"), "BEARER");
            let keys = r#""accessKeyId":"K","secretAccessKey":"S","sessionToken":"T","expiration":4070908800000"#;
            answer("200 OK", &format!(r#"{{"roleCredentials":{{{keys}}}}}"#))
        }
        ("POST", "/") => {
            let keys = "<AccessKeyId>K</AccessKeyId><SecretAccessKey>S</SecretAccessKey><SessionToken>T</SessionToken>";
            let keys = format!("<Credentials>{keys}<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>");
            let user = "<AssumedRoleUser><AssumedRoleId>i</AssumedRoleId><Arn>arn:aws:sts::1:assumed-role/r/s</Arn></AssumedRoleUser>";
            let name = "AssumeRoleWithWebIdentity";
            let body = format!("<{name}Response><{name}Result>{keys}{user}</{name}Result></{name}Response>");
            answer("200 OK", &body)
        }
        _ => answer("404 Not Found", ""),
    }
}

#[test]
fn keys_come_from_everywhere_that_programs_of_aws_look() {
    let (case, services) = (Case::new(), Guard::before(0, aws));
    case.add(case.server.port, "");
    let (home, at) = (case.home.path().display(), format!("http://127.0.0.1:{}", services.port));
    let files = |profiles: &str| fs::write(case.home.path().join(".aws/config"), profiles).unwrap();
    let check = |place: &str, variables: &[(&str, &str)]| {
        case.done("store ping s3", variables);
        let shown = case.done("store show s3", variables);
        assert!(shown.contains(&format!("# keys from: {place}")), "{shown}");
    };
    fs::write(case.home.path().join(".aws/credentials"), "[default]\naws_access_key_id=K\naws_secret_access_key=S\n")
        .unwrap();
    check("profile \"default\" of the AWS files", &[]);
    check("AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY", &[("AWS_ACCESS_KEY_ID", "K"), ("AWS_SECRET_ACCESS_KEY", "S")]);
    check("KLOSET_ACCESS_KEY, KLOSET_SEC", &[("KLOSET_ACCESS_KEY", "K"), ("KLOSET_SECRET_ACCESS_KEY", "S")]);
    fs::remove_file(case.home.path().join(".aws/credentials")).unwrap();

    let prints = r#"{"Version":1,"AccessKeyId":"K","SecretAccessKey":"S"}"#;
    fs::write(case.home.path().join("prints.sh"), format!("echo '{prints}'")).unwrap();
    files(&format!("[profile work]\ncredential_process = sh {home}/prints.sh\n"));
    check("profile \"work\" of the AWS files", &[("AWS_PROFILE", "work")]);
    case.done("store set s3 profile work", &[]);
    check("profile \"work\" of the AWS files", &[("AWS_ACCESS_KEY_ID", "X"), ("AWS_SECRET_ACCESS_KEY", "X")]);
    case.done("store unset s3 profile", &[]);

    let session = "sso_region = eu-west-3\nsso_start_url = https://example.com/start\n";
    files(&format!(
        "[default]\nsso_session = corp\nsso_account_id = 1\nsso_role_name = r\n[sso-session corp]\n{session}"
    ));
    let token = r#"{"accessToken":"BEARER","expiresAt":"2099-01-01T00:00:00Z","region":"eu-west-3"}"#;
    // The name is the SHA-1 of that of the session.
    let cached = ".aws/sso/cache/ee0bfd2552fbd840c02cc48b6e823320543c450f.json";
    fs::write(case.home.path().join(cached), token).unwrap();
    check("profile \"default\" of the AWS files", &[("AWS_ENDPOINT_URL_SSO", &at)]);
    files("");

    let token = case.home.path().join("token");
    fs::write(&token, "web token").unwrap();
    let web = [("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()), ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r")];
    check("web identity", &[web[0], web[1], ("AWS_ENDPOINT_URL_STS", &at)]);
    check("container", &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{at}/container"))]);
    check("instance metadata", &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &at)]);
}

#[test]
fn the_machines_keys_are_not_looked_for_where_keys_are_said() {
    let case = Case::new();
    let (script, run) = (case.home.path().join("process.sh"), case.home.path().join("run"));
    fs::write(&script, format!("touch {}; exit 1", run.display())).unwrap();
    let profile = format!("[default]\ncredential_process = sh {}\n", script.display());
    fs::write(case.home.path().join(".aws/config"), profile).unwrap();
    case.add(case.server.port, "access_key=K secret_access_key=S");
    case.done("store ping s3", &[]);
    assert!(!run.exists());
    case.done("store unset s3 access_key secret_access_key", &[]);
    assert!(!case.run("store ping s3", &[]).status.success());
    assert!(run.exists());
}

#[test]
fn a_machine_without_keys_is_told_soon_where_was_looked() {
    let case = Case::new();
    case.add(case.server.port, "");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metadata = format!("http://{}", silent.local_addr().unwrap());
    let begun = Instant::now();
    let output =
        case.run("store ping s3", &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata), ("AWS_PROFILE", "work")]);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    for place in ["config repository set s3", "KLOSET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "\"work\"", "web identity"] {
        assert!(told.contains(place), "{place}: {told}");
    }
    assert!(told.contains("container") && told.contains("instance metadata"), "{told}");
    // Off is off, on AWS as well.
    case.done("store set s3 location s3://s3.eu-west-3.amazonaws.com/bucket", &[]);
    let begun = Instant::now();
    let told = text(&case.run("store ping s3", &[("AWS_EC2_METADATA_DISABLED", "true")]).stderr);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(told.contains("not asked: instance metadata"), "{told}");
}

#[test]
fn no_message_tells_what_a_profile_or_a_command_holds() {
    let case = Case::new();
    case.add(case.server.port, "");
    let script = case.home.path().join("process.sh");
    fs::write(&script, "echo '{\"Version\":1,\"AccessKeyId\":\"K\",\"SecretAccessKey\":\"HIDDEN\",'").unwrap();
    let profile = format!("[default]\ncredential_process = sh {} HIDDEN\n", script.display());
    for profile in [profile.as_str(), "[default]\naws_access_key_id=K\naws_secret_access_key\nHIDDEN", "HIDDEN"] {
        fs::write(case.home.path().join(".aws/config"), profile).unwrap();
        for line in ["-vv store ping s3", "-vv store show s3"] {
            let output = case.run(line, &[]);
            let told = text(&output.stderr) + &text(&output.stdout);
            assert!(!told.contains("HIDDEN"), "{profile}: {told}");
        }
    }
}

#[tokio::test]
async fn a_store_may_be_behind_tls_of_ones_own_and_ask_for_a_certificate() {
    let case = Case::new();
    let secured = Guard::secured(case.server.port);
    let at = format!("localhost:{}/bucket", secured.port);
    let asks = |network: Network| {
        let options = S3Options { use_tls: true, network, ..options() };
        let store = open(&at, &options);
        async move { store.list("").await }
    };
    let read = |name: &str| fs::read(pem(name)).unwrap();
    let authorities: Option<Arc<[u8]>> = Some(read("ca.pem").into());
    let error = asks(Network::default()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { why: Outage::Certificate, .. }), "{error}");
    let error = asks(Network { authorities: authorities.clone(), ..Network::default() }).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "no certificate was shown: {error}");
    let identity = Some(Secret::new([read("client.pem"), read("client.key")].concat()));
    asks(Network { authorities, identity: identity.clone(), ..Network::default() }).await.unwrap();
    asks(Network { verifies: false, identity, ..Network::default() }).await.unwrap();
}

#[test]
fn certificates_are_named_in_the_config_and_unchecked_ones_warned_of_each_time() {
    let case = Case::new();
    let secured = Guard::secured(case.server.port);
    case.add(secured.port, "access_key=K secret_access_key=S");
    case.done("store set s3 use_tls true", &[]);
    let set = |key: &str, name: &str| {
        case.done(&format!("store set s3 {key} {}", pem(name).display()), &[]);
    };
    set("client_cert_file", "client.pem");
    set("client_key_file", "client.key");
    let told = text(&case.run("store ping s3", &[]).stderr);
    assert!(told.contains("ca_file"), "{told}");
    let bundle = pem("ca.pem").display().to_string();
    case.done("store ping s3", &[("AWS_CA_BUNDLE", &bundle)]);
    set("ca_file", "ca.pem");
    case.done("store ping s3", &[]);
    case.done("store unset s3 ca_file", &[]);
    case.done("store set s3 tls_verify false", &[]);
    for _ in 0..2 {
        let output = case.run("store ping s3", &[]);
        assert!(output.status.success() && text(&output.stderr).contains("tls_verify"), "{}", text(&output.stderr));
    }
}

#[tokio::test]
async fn a_proxy_is_gone_by() {
    let guard = Guard::before(0, |_| empty_listing());
    let proxy = format!("http://127.0.0.1:{}", guard.port);
    let network = Network { proxy: Some(proxy.as_str().into()), ..Network::default() };
    open("store.invalid/bucket", &S3Options { network, ..options() }).list("").await.unwrap();
    let asked = guard.asked();
    assert!(asked[0].target.starts_with("http://store.invalid/bucket"), "{asked:?}");
}

/// What `store policy --for backup` grants.
fn may_back_up(operation: &str, asked: &str) -> bool {
    let below = asked.starts_with("/bucket/kloset/") || asked.contains("prefix=kloset%2F");
    below && ["GetObject", "HeadObject", "PutObject", "ListObjectsV2"].contains(&operation)
}

#[test]
fn a_key_without_the_right_to_delete_creates_backs_up_mounts_and_restores() {
    let files: [(&str, &[u8]); 2] = [("a", b"one"), ("deep/b", b"two")];
    let program = Program::over(&files, |options| rights::start(options, may_back_up));
    let policy = program.run(&["store", "policy", "--for", "backup", "s3"]);
    let policy: serde_json::Value = serde_json::from_slice(&policy.stdout).unwrap();
    assert_eq!(policy["Statement"][0]["Action"], serde_json::json!(["s3:ListBucket"]));
    assert_eq!(policy["Statement"][0]["Condition"]["StringLike"]["s3:prefix"][0], "kloset/*");
    assert_eq!(policy["Statement"][1]["Action"], serde_json::json!(["s3:GetObject", "s3:PutObject"]));
    fs::write(program.source().join("c"), "three").unwrap();
    program.backup(&[]);
    program.done(&["ls"]);
    program.done(&["check"]);
    let to = program.at("restored");
    program.done(&["restore", "latest", "--to", to.to_str().unwrap()]);
    let source = program.source();
    let restored = |name: &str| to.join(source.strip_prefix("/").unwrap()).join(name);
    assert_eq!(fs::read(restored("deep/b")).unwrap(), b"two");
    if may_mount() {
        let _serving = program.serve(&[]);
        assert_eq!(fs::read(program.latest().join("c")).unwrap(), b"three");
    }
    let output = program.run(&["forget", "--keep-last", "1", "--apply"]);
    assert_eq!(output.status.code(), Some(13), "{}", text(&output.stderr));
    assert!(Path::new(&program.at("s3/bucket/kloset/snapshots")).read_dir().unwrap().count() >= 2);
}
