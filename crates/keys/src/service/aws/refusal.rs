//! What AWS's errors mean to a key. Their names are those of the API references of KMS and STS, and of the errors that
//! all of AWS's services have in common.

use serde::Deserialize;

use super::super::asking::{Answer, Subject};
use super::session::Session;
use crate::KeyFailure;

/// A refusal of AWS's.
pub(super) struct Refused {
    /// The error's name without its namespace.
    code: String,
    message: String,
    status: u16,
}

#[derive(Deserialize)]
struct Json {
    #[serde(rename = "__type")]
    kind: String,
    #[serde(alias = "Message")]
    message: Option<String>,
}

impl Refused {
    /// Of whichever protocol: what stands before KMS does not always speak its own.
    pub(super) fn of(answer: &Answer, session: &Session) -> Option<Self> {
        Self::of_json(answer, session).or_else(|| Self::of_xml(answer, session))
    }

    /// Of the JSON protocol, which KMS speaks.
    fn of_json(answer: &Answer, session: &Session) -> Option<Self> {
        let Json { kind, message } = answer.read()?;
        // Both `namespace#Name` and `Name:link` are seen.
        let code = kind.rsplit('#').next()?.split(':').next()?;
        Self::new(code, message.as_deref().unwrap_or_default(), answer.status, session)
    }

    /// Of the query protocol, which STS speaks: `ErrorResponse/Error/Code` and `Message`.
    fn of_xml(answer: &Answer, session: &Session) -> Option<Self> {
        let text = std::str::from_utf8(&answer.body).ok()?;
        let document = roxmltree::Document::parse(text).ok()?;
        let text_of = |name: &str| {
            document.descendants().find(|node| node.tag_name().name() == name).and_then(|node| node.text())
        };
        document.descendants().find(|node| node.tag_name().name() == "Error")?;
        Self::new(text_of("Code")?, text_of("Message").unwrap_or_default(), answer.status, session)
    }

    fn new(code: &str, message: &str, status: u16, session: &Session) -> Option<Self> {
        let is_name =
            (1..=100).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
        is_name.then(|| Self { code: code.to_owned(), message: session.said(message), status })
    }

    /// What was signed with is not accepted; another sign-in may help.
    pub(super) fn is_of_credentials(&self) -> bool {
        matches!(
            self.code.as_str(),
            "ExpiredTokenException"
                | "ExpiredToken"
                | "UnrecognizedClientException"
                | "InvalidClientTokenId"
                | "InvalidAccessKeyId"
                | "MissingAuthenticationToken"
                | "MissingAuthenticationTokenException"
        )
    }

    /// What it means to the key.
    pub(super) fn meaning(&self, subject: &Subject) -> KeyFailure {
        let Self { code, message, status } = self;
        let said = format!("{code}: {message}");
        if self.is_of_credentials() {
            return subject.unauthenticated(format!(
                "AWS does not accept the credentials ({said}); give the key service an access key that is active"
            ));
        }
        let lower = message.to_lowercase();
        match code.as_str() {
            // A key between two states will be usable, or will be refused, in a moment.
            "KMSInvalidStateException"
                if ["unavailable", "creating", "updating"].iter().any(|state| lower.contains(state)) =>
            {
                subject.unreachable(said)
            }
            "DisabledException" | "KMSInvalidStateException" | "NotFoundException" | "AccessDeniedException"
            | "AccessDenied" | "OptInRequired" | "NotAuthorized" => subject.denied(said),
            "InvalidCiphertextException" | "IncorrectKeyException" => subject.does_not_open(),
            // The signature holds for some minutes: our clock, or theirs.
            "RequestExpired" | "RequestTimeTooSkewed" => subject.unreachable(clock(code)),
            "InvalidSignatureException" | "SignatureDoesNotMatch" | "InvalidSignature"
                if lower.contains("expired") || lower.contains("not yet current") =>
            {
                subject.unreachable(clock(code))
            }
            // Its message repeats what was signed, so it is not passed on.
            "InvalidSignatureException" | "SignatureDoesNotMatch" | "InvalidSignature" | "IncompleteSignature" => {
                subject.unauthenticated(format!(
                    "AWS does not accept the credentials ({code}: the secret access key is not the one of this access \
                     key's id); set the key service anew"
                ))
            }
            "ThrottlingException" | "Throttling" | "TooManyRequestsException" | "LimitExceededException"
            | "RequestLimitExceeded" | "ServiceUnavailable" | "ServiceUnavailableException"
            | "InternalFailure" | "KMSInternalException" | "KeyUnavailableException"
            | "DependencyTimeoutException" => subject.unreachable(said),
            _ if *status == 429 || *status >= 500 => subject.unreachable(said),
            _ => subject.unusable(said),
        }
    }
}

fn clock(code: &str) -> String {
    format!("{code}: the signature's time is not AWS's; set this machine's clock")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: &str, message: &str, status: u16) -> &'static str {
        let refused = Refused { code: code.to_owned(), message: message.to_owned(), status };
        match refused.meaning(&Subject::of(&model::KeySpec::root())) {
            KeyFailure::Denied { .. } => "denied",
            KeyFailure::Unauthenticated { .. } => "unauthenticated",
            KeyFailure::Unreachable { .. } => "unreachable",
            KeyFailure::Unusable { .. } => "unusable",
            KeyFailure::DoesNotOpen { .. } => "does not open",
            KeyFailure::NotItsKey { .. } => "not its key",
        }
    }

    #[test]
    fn each_documented_error_has_its_meaning() {
        let expected = [
            ("DisabledException", "arn is disabled.", 400, "denied"),
            ("KMSInvalidStateException", "arn is pending deletion.", 400, "denied"),
            ("KMSInvalidStateException", "arn is unavailable.", 400, "unreachable"),
            ("NotFoundException", "Key 'arn' does not exist", 400, "denied"),
            ("AccessDeniedException", "User: arn is not authorized to perform: kms:Decrypt", 400, "denied"),
            ("ExpiredTokenException", "The security token included is expired", 400, "unauthenticated"),
            (
                "UnrecognizedClientException",
                "The security token included is invalid.",
                400,
                "unauthenticated",
            ),
            ("InvalidClientTokenId", "The security token included is invalid.", 403, "unauthenticated"),
            ("InvalidCiphertextException", "", 400, "does not open"),
            ("IncorrectKeyException", "", 400, "does not open"),
            ("InvalidKeyUsageException", "", 400, "unusable"),
            ("ValidationException", "", 400, "unusable"),
            ("KeyUnavailableException", "", 500, "unreachable"),
            ("DependencyTimeoutException", "", 500, "unreachable"),
            ("KMSInternalException", "", 500, "unreachable"),
            ("ThrottlingException", "Rate exceeded", 400, "unreachable"),
            ("SomethingNew", "", 503, "unreachable"),
            (
                "InvalidSignatureException",
                "Signature expired: 20260101 is now earlier than",
                400,
                "unreachable",
            ),
            ("SignatureDoesNotMatch", "Signature not yet current: 20260101", 403, "unreachable"),
            ("InvalidSignatureException", "The request signature we calculated", 400, "unauthenticated"),
            ("SignatureDoesNotMatch", "The request signature we calculated", 403, "unauthenticated"),
        ];
        for (code, message, status, meaning) in expected {
            assert_eq!(kind(code, message, status), meaning, "{code}: {message}");
        }
    }
}
