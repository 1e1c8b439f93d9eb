//! AWS as moto plays it (`tests/clients/keys/aws.py`): KMS with encryption contexts, STS, and IAM, which checks our
//! signatures with AWS's own library and asks the policies.

use std::process::Command;
use std::sync::Arc;

use keys::{DataKey, KeyEncryption, KeyFailure};
use model::{KeptSecret, KeyCredentials, KeyService, KeySpec, KeyType};
use serde_json::{Value, json};

use crate::ports::free_port;
use crate::world::{
    Loopback, Program, TestClock, client, installed, kind_of, open, place, ready, service, spec, workspace,
};

const REGION: &str = "eu-central-1";
const MAY_USE: &str = r#"{"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": ["kms:Encrypt", "kms:Decrypt", "sts:AssumeRole"], "Resource": "*"}]}"#;
const MAY_NOTHING: &str = r#"{"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": ["s3:ListAllMyBuckets"], "Resource": "*"}]}"#;
const MAY_ASSUME: &str = r#"{"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": ["sts:AssumeRole"], "Resource": "*"}]}"#;

struct Aws {
    address: String,
    access_key_id: String,
    secret_access_key: String,
    _program: Program,
}

impl Aws {
    /// With a user `chitin` that may use keys.
    async fn start() -> Self {
        let port = free_port().port();
        let mut command = Command::new(installed("python"));
        command.arg(workspace().join("tests/clients/keys/aws.py")).arg(port.to_string());
        let program = Program::start(&mut command, tempfile::tempdir().unwrap());
        let address = format!("http://127.0.0.1:{port}");
        ready(&address, None).await;
        let mut aws = Self {
            address,
            access_key_id: String::new(),
            secret_access_key: String::new(),
            _program: program,
        };
        aws.iam(&[("Action", "CreateUser"), ("UserName", "chitin")]).await;
        let made = aws.iam(&[("Action", "CreateAccessKey"), ("UserName", "chitin")]).await;
        aws.access_key_id = element(&made, "AccessKeyId");
        aws.secret_access_key = element(&made, "SecretAccessKey");
        aws.user_policy(MAY_USE).await;
        aws
    }

    async fn send(
        &self,
        service: &str,
        build: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> String {
        // Moto finds the service by what is signed; nobody looks at an administrator's signature.
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=ADMIN/20260101/{REGION}/{service}/aws4_request, SignedHeaders=host, Signature=0"
        );
        self.check_from(1_000_000).await;
        let request = client(None).post(format!("{}/", self.address)).header("authorization", authorization);
        let answer = build(request).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{service}: {status} {text}");
        // From here on every signature and every policy counts.
        self.check_from(0).await;
        text
    }

    async fn check_from(&self, requests: u32) {
        let url = format!("{}/moto-api/reset-auth", self.address);
        let answer = client(None).post(url).body(requests.to_string()).send().await.unwrap();
        assert!(answer.status().is_success());
    }

    async fn iam(&self, form: &[(&str, &str)]) -> String {
        let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let kind = "application/x-www-form-urlencoded";
        self.send("iam", |request| request.header("content-type", kind).body(form)).await
    }

    async fn user_policy(&self, policy: &str) {
        let form = [
            ("Action", "PutUserPolicy"),
            ("UserName", "chitin"),
            ("PolicyName", "keys"),
            ("PolicyDocument", policy),
        ];
        self.iam(&form).await;
    }

    /// A role that may use keys; returns its ARN.
    async fn role(&self) -> String {
        let made = self
            .iam(&[("Action", "CreateRole"), ("RoleName", "keys"), ("AssumeRolePolicyDocument", MAY_ASSUME)])
            .await;
        self.role_policy(MAY_USE).await;
        element(&made, "Arn")
    }

    async fn role_policy(&self, policy: &str) {
        let form = [
            ("Action", "PutRolePolicy"),
            ("RoleName", "keys"),
            ("PolicyName", "keys"),
            ("PolicyDocument", policy),
        ];
        self.iam(&form).await;
    }

    async fn kms(&self, action: &str, body: &Value) -> Value {
        let text = self
            .send("kms", |request| {
                request
                    .header("x-amz-target", format!("TrentService.{action}"))
                    .header("content-type", "application/x-amz-json-1.1")
                    .body(body.to_string())
            })
            .await;
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Makes a key; returns its ARN.
    async fn new_key(&self) -> String {
        let made = self.kms("CreateKey", &json!({})).await;
        made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    fn service(&self) -> KeyService {
        let credentials = KeyCredentials::AwsAccessKey {
            access_key_id: self.access_key_id.clone(),
            secret_access_key: KeptSecret::new(self.secret_access_key.clone()),
            session_token: None,
            external_id: Some("chitin-1".into()),
        };
        service(KeyType::Aws, &self.address, credentials)
    }

    fn key(&self, arn: &str) -> Arc<dyn KeyEncryption> {
        open(&self.service(), &spec(KeyType::Aws, arn))
    }
}

fn element(xml: &str, name: &str) -> String {
    let document = roxmltree::Document::parse(xml).unwrap();
    let node = document.descendants().find(|node| node.tag_name().name() == name);
    node.and_then(|node| node.text()).unwrap_or_else(|| panic!("{name} in {xml}")).to_owned()
}

#[tokio::test]
async fn an_aws_key_wraps_and_opens_for_its_own_cluster_only_with_signatures_that_are_checked() {
    let aws = Aws::start().await;
    let arn = aws.new_key().await;
    let key = aws.key(&arn);
    let (mine, data_key) = (place(), DataKey::random());
    let wrapped = key.wrap(&data_key, &mine).await.unwrap();
    assert_eq!((wrapped.key_id.as_str(), wrapped.key_version.as_str()), (arn.as_str(), ""));
    assert_eq!(key.unwrap(&wrapped, &mine).await.unwrap().expose(), data_key.expose());
    assert_eq!(kind_of(key.unwrap(&wrapped, &place()).await), "does not open");
    // The text of another key that we may use too.
    let other = aws.new_key().await;
    let foreign = keys::WrappedKey { key_id: other, ..wrapped.clone() };
    assert_eq!(kind_of(key.unwrap(&foreign, &mine).await), "does not open");
    let changed = keys::WrappedKey { wrapped: "AAAAAAAAAAAA".into(), ..wrapped };
    assert_eq!(kind_of(key.unwrap(&changed, &mine).await), "does not open");
}

#[tokio::test]
async fn a_disabled_aws_key_is_denied_and_opens_again_when_it_is_enabled() {
    let aws = Aws::start().await;
    let arn = aws.new_key().await;
    let key = aws.key(&arn);
    let mine = place();
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    // Moto takes no ARN here.
    let (_, id) = arn.split_once(":key/").unwrap();
    aws.kms("DisableKey", &json!({"KeyId": id})).await;
    let denied = key.unwrap(&wrapped, &mine).await.unwrap_err();
    assert!(matches!(denied, KeyFailure::Denied { .. }), "{denied}");
    assert!(denied.to_string().contains("DisabledException"), "{denied}");
    assert_eq!(kind_of(key.wrap(&DataKey::random(), &mine).await), "denied");
    aws.kms("EnableKey", &json!({"KeyId": id})).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
    aws.kms("ScheduleKeyDeletion", &json!({"KeyId": id, "PendingWindowInDays": 7})).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "denied");
    aws.kms("CancelKeyDeletion", &json!({"KeyId": id})).await;
    aws.kms("EnableKey", &json!({"KeyId": id})).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
    let other = if arn.ends_with('0') { '1' } else { '0' };
    let gone = aws.key(&format!("{}{other}", &arn[..arn.len() - 1]));
    assert_eq!(kind_of(gone.wrap(&DataKey::random(), &mine).await), "denied", "a key that is not there");
}

#[tokio::test]
async fn what_iam_forbids_is_denied_and_credentials_that_are_wrong_or_gone_deny_nothing() {
    let aws = Aws::start().await;
    let arn = aws.new_key().await;
    let key = aws.key(&arn);
    let mine = place();
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    aws.user_policy(MAY_NOTHING).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "denied");
    aws.user_policy(MAY_USE).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");

    let KeyCredentials::AwsAccessKey { access_key_id, external_id, .. } = aws.service().credentials else {
        unreachable!("it is an access key");
    };
    let secret_access_key = KeptSecret::new("canary/canary/canary/canary/canary/canary".into());
    let credentials =
        KeyCredentials::AwsAccessKey { access_key_id, secret_access_key, session_token: None, external_id };
    let wrong = open(&KeyService { credentials, ..aws.service() }, &wrapped.key);
    let refused = wrong.unwrap(&wrapped, &mine).await.unwrap_err();
    assert!(matches!(refused, KeyFailure::Unauthenticated { .. }), "{refused}");
    assert!(!format!("{refused:?} {wrong:?}").contains("canary"), "{refused:?} {wrong:?}");

    let form = [("Action", "DeleteAccessKey"), ("UserName", "chitin"), ("AccessKeyId", &aws.access_key_id)];
    aws.iam(&form).await;
    let gone = key.unwrap(&wrapped, &mine).await.unwrap_err();
    assert!(matches!(gone, KeyFailure::Unauthenticated { .. }), "{gone}");
    assert!(gone.to_string().contains("give the key service an access key that is active"), "{gone}");
    drop(aws);
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "unreachable");
}

#[tokio::test]
async fn a_role_is_assumed_once_until_shortly_before_it_ends() {
    let aws = Aws::start().await;
    let arn = aws.new_key().await;
    let role = aws.role().await;
    // Only the role may use the key.
    aws.user_policy(MAY_ASSUME).await;
    let as_role = KeySpec { auth_principal: role, ..spec(KeyType::Aws, &arn) };
    let (fetcher, clock) = (Arc::<Loopback>::default(), TestClock::new());
    let key = keys::service::open(&aws.service(), &as_role, fetcher.clone(), clock.clone()).unwrap();
    let assumed = || {
        let fetches = fetcher.fetches.lock().unwrap();
        let bodies = fetches.iter().filter_map(|fetch| fetch.body.as_ref());
        let asked = bodies.filter(|body| body.bytes.0.starts_with(b"Action=AssumeRole"));
        asked.inspect(|body| assert!(body.bytes.0.ends_with(b"ExternalId=chitin-1"))).count()
    };
    let mine = place();
    let wrapped = key.wrap(&DataKey::random(), &mine).await.unwrap();
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
    assert_eq!(assumed(), 1);
    clock.advance(time::Duration::minutes(56));
    // Moto, like AWS, goes by its own clock; the signature says another time, which only AWS minds.
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "opens");
    assert_eq!(assumed(), 2);

    assert_eq!(kind_of(aws.key(&arn).unwrap(&wrapped, &mine).await), "denied", "not as the user itself");
    aws.role_policy(MAY_NOTHING).await;
    assert_eq!(kind_of(key.unwrap(&wrapped, &mine).await), "denied");
    aws.role_policy(MAY_USE).await;
    aws.user_policy(MAY_NOTHING).await;
    clock.advance(time::Duration::minutes(56));
    let denied = key.unwrap(&wrapped, &mine).await;
    assert_eq!(kind_of(denied), "denied", "the role may not be assumed any more");
}

#[tokio::test]
async fn an_alias_may_lead_to_another_key_and_what_the_old_one_wrapped_still_opens() {
    let aws = Aws::start().await;
    let (first, second) = (aws.new_key().await, aws.new_key().await);
    aws.kms("CreateAlias", &json!({"AliasName": "alias/shop", "TargetKeyId": first})).await;
    let (account, _) = first.split_once(":key/").unwrap();
    let key = aws.key(&format!("{account}:alias/shop"));
    let (mine, data_key) = (place(), DataKey::random());
    let old = key.wrap(&data_key, &mine).await.unwrap();
    aws.kms("UpdateAlias", &json!({"AliasName": "alias/shop", "TargetKeyId": second})).await;
    let new = key.wrap(&data_key, &mine).await.unwrap();
    assert_eq!((old.key_id.as_str(), new.key_id.as_str()), (first.as_str(), second.as_str()));
    for wrapped in [&old, &new] {
        assert_eq!(key.unwrap(wrapped, &mine).await.unwrap().expose(), data_key.expose());
    }
}
