//! A server of somebody else's that speaks S3 and verifies signatures: `moto`, from a Python environment.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// Names the environment's `python`, if it is not the one in `target/test-python`.
const PYTHON_VARIABLE: &str = "SHOWRUNNER_TEST_S3_PYTHON";
/// Set where a skipped test is a failure.
const REQUIRE_VARIABLE: &str = "SHOWRUNNER_TEST_REQUIRE_S3";

/// Makes a user, its keys and a bucket; from then on every request has to be signed. Ends with its standard input.
const SCRIPT: &str = r#"
import json, logging, os, sys
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "4"
import boto3
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
endpoint = "http://127.0.0.1:%d" % server.get_host_and_port()[1]
any_key = dict(region_name="us-east-1", endpoint_url=endpoint, aws_access_key_id="a", aws_secret_access_key="b")
iam = boto3.client("iam", **any_key)
iam.create_user(UserName="clips")
iam.put_user_policy(UserName="clips", PolicyName="all", PolicyDocument=json.dumps(
    {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}))
key = iam.create_access_key(UserName="clips")["AccessKey"]
boto3.client("s3", **any_key).create_bucket(Bucket="clips")
print(json.dumps([endpoint, key["AccessKeyId"], key["SecretAccessKey"]]), flush=True)
sys.stdin.read()
"#;

/// A server with a bucket `clips`; stopped when dropped.
pub struct S3Server {
    child: Child,
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
}

impl S3Server {
    /// Starts one, where it is installed; else none, with a line that says so.
    pub fn start() -> Option<Self> {
        let python = std::env::var_os(PYTHON_VARIABLE).map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-python/bin/python"),
            std::path::PathBuf::from,
        );
        let has_moto = Command::new(&python).args(["-c", "import moto.server, boto3"]).stderr(Stdio::null()).status();
        if !has_moto.is_ok_and(|ended| ended.success()) {
            let how =
                "python3 -m venv target/test-python && target/test-python/bin/pip install 'moto[server,s3]==5.2.5'";
            assert!(std::env::var_os(REQUIRE_VARIABLE).is_none(), "{REQUIRE_VARIABLE} is set; do `{how}`");
            eprintln!("skipped: no server that speaks S3; `{how}` installs one");
            return None;
        }
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines().map_while(Result::ok);
        let [endpoint, access_key, secret_key] = lines
            .find_map(|line| serde_json::from_str::<Value>(&line).ok())
            .and_then(|said| serde_json::from_value::<[String; 3]>(said).ok())
            .expect("it says where it listens");
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, endpoint, access_key, secret_key })
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
