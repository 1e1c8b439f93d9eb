//! A certificate authority as its operator runs it: `openssl ca` with its index, its serial numbers and its lists.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::command::run;

/// An authority that signs certificates and revokes them.
pub struct Authority {
    directory: PathBuf,
    /// Certificates between this authority and its root, this one first; empty for a root.
    between: String,
    /// Where its certificates say that they can be asked about; none by default.
    turn: Mutex<()>,
}

/// A certificate with its key, for a client.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate and those between it and the root, in PEM.
    pub chain: PathBuf,
    /// The certificate alone.
    pub certificate: PathBuf,
    /// Its key, for its owner only.
    pub key: PathBuf,
}

impl Identity {
    /// The certificate's serial number as it stands in DER.
    pub fn serial(&self) -> Vec<u8> {
        let pem = fs::read(&self.certificate).expect("a certificate");
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).expect("PEM");
        pem.parse_x509().expect("a certificate").raw_serial().to_vec()
    }
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The subject as `openssl ca -subj` takes it, for instance `/CN=maria`.
    pub subject: String,
    /// Subject alternative names as OpenSSL writes them, for instance `email:maria@example.org`.
    pub names: Vec<String>,
    /// Extended key usage; `None` leaves the extension out.
    pub usage: Option<String>,
    /// Valid from, as `date -d` understands it.
    pub from: String,
    /// Valid until.
    pub until: String,
    /// Where its responder is.
    pub responders: Vec<String>,
}

impl Leaf {
    /// A good client certificate of a SQL user.
    pub fn of(user: &str) -> Self {
        Self {
            subject: format!("/CN={user}"),
            names: Vec::new(),
            usage: Some("clientAuth".to_owned()),
            from: "-1 hour".to_owned(),
            until: "+10 days".to_owned(),
            responders: Vec::new(),
        }
    }

    /// The same with a responder.
    #[must_use]
    pub fn asked_at(mut self, url: &str) -> Self {
        self.responders.push(url.to_owned());
        self
    }

    /// The same with another subject.
    #[must_use]
    pub fn with_subject(mut self, subject: &str) -> Self {
        subject.clone_into(&mut self.subject);
        self
    }

    fn extensions(&self) -> String {
        let mut text =
            "basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\n".to_owned();
        if let Some(usage) = &self.usage {
            let _ = writeln!(text, "extendedKeyUsage = {usage}");
        }
        if !self.names.is_empty() {
            let _ = writeln!(text, "subjectAltName = {}", self.names.join(","));
        }
        text + &access(&self.responders)
    }
}

fn access(responders: &[String]) -> String {
    let all: Vec<String> = responders.iter().map(|url| format!("OCSP;URI:{url}")).collect();
    if all.is_empty() { String::new() } else { format!("authorityInfoAccess = {}\n", all.join(",")) }
}

/// A moment as `openssl ca` writes it.
pub fn moment(relative: &str) -> String {
    run(Command::new("date").args(["-u", "+%Y%m%d%H%M%SZ", "-d", relative])).ok().trim().to_owned()
}

fn openssl(arguments: &[&str]) -> String {
    run(Command::new("openssl").args(arguments)).ok()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path of a temporary directory is ASCII")
}

const ROOT: &str = "basicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign,cRLSign\nsubjectKeyIdentifier = hash\n";

impl Authority {
    /// A new root below the directory.
    pub fn root(below: &Path, name: &str) -> Self {
        let one = Self::prepare(below, name, String::new());
        let extensions = one.path("root.ext");
        fs::write(
            &extensions,
            format!("[req]\ndistinguished_name = dn\nx509_extensions = all\n[dn]\n[all]\n{ROOT}"),
        )
        .expect("a scratch file");
        one.new_key("ca.key");
        let (key, certificate) = (one.path("ca.key"), one.path("ca.pem"));
        let subject = format!("/O=Tests/CN={name}");
        openssl(&[
            "req",
            "-x509",
            "-new",
            "-days",
            "30",
            "-config",
            text(&extensions),
            "-subj",
            &subject,
            "-key",
            text(&key),
            "-out",
            text(&certificate),
        ]);
        one
    }

    /// A new authority under this one; its own certificate names these responders.
    pub fn intermediate(&self, name: &str, responders: &[String]) -> Self {
        self.authority_below(name, &access(responders))
    }

    /// A new authority under this one that may give these names only, as OpenSSL writes name constraints, for instance
    /// `permitted;DNS:partner.example`.
    pub fn constrained(&self, name: &str, constraints: &str) -> Self {
        self.authority_below(name, &format!("nameConstraints = critical,{constraints}\n"))
    }

    fn authority_below(&self, name: &str, more: &str) -> Self {
        let below = self.directory.parent().expect("an authority lies below something");
        let mut one = Self::prepare(below, name, String::new());
        one.new_key("ca.key");
        let request = one.request("ca.key", &format!("/O=Tests/CN={name}"));
        let certificate = one.path("ca.pem");
        let extensions = ROOT.to_owned() + more;
        self.sign(&request, &extensions, "-1 hour", "+20 days", None, &certificate);
        one.between = fs::read_to_string(&certificate).expect("just signed") + &self.between;
        one
    }

    fn prepare(below: &Path, name: &str, between: String) -> Self {
        let directory = below.join(name.replace(' ', "-"));
        fs::create_dir_all(directory.join("issued")).expect("a scratch directory");
        let path = text(&directory).to_owned();
        let config = format!(
            "[ca]\ndefault_ca = here\n[here]\ndatabase = {path}/index.txt\nnew_certs_dir = {path}/issued\n\
             serial = {path}/serial\ncrlnumber = {path}/crlnumber\ncertificate = {path}/ca.pem\n\
             private_key = {path}/ca.key\ndefault_md = sha256\ndefault_days = 10\ndefault_crl_days = 7\n\
             unique_subject = no\npolicy = anything\n[anything]\ncommonName = optional\n\
             organizationName = optional\norganizationalUnitName = optional\ncountryName = optional\n\
             [delta]\n2.5.29.27 = critical,ASN1:INTEGER:1\n"
        );
        for (file, content) in [
            ("index.txt", ""),
            ("index.txt.attr", "unique_subject = no\n"),
            ("crlnumber", "01\n"),
            ("ca.cnf", &config),
        ] {
            fs::write(directory.join(file), content).expect("a scratch file");
        }
        Self { directory, between, turn: Mutex::new(()) }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// `openssl ca` keeps its books in files, so one at a time.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_key(&self, file: &str) {
        let path = self.path(file);
        openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", text(&path)]);
        // libpq refuses a key that others can read.
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("our file");
    }

    fn request(&self, key: &str, subject: &str) -> PathBuf {
        let (key, request) = (self.path(key), self.path("request.pem"));
        let config = self.path("request.cnf");
        fs::write(&config, "[req]\ndistinguished_name = dn\n[dn]\n").expect("a scratch file");
        openssl(&[
            "req",
            "-new",
            "-config",
            text(&config),
            "-utf8",
            "-key",
            text(&key),
            "-subj",
            subject,
            "-out",
            text(&request),
        ]);
        request
    }

    fn sign(
        &self,
        request: &Path,
        extensions: &str,
        from: &str,
        until: &str,
        subject: Option<&str>,
        certificate: &Path,
    ) {
        let _turn = self.turn();
        let file = self.path("leaf.ext");
        fs::write(&file, extensions).expect("a scratch file");
        let config = self.path("ca.cnf");
        let (from, until) = (moment(from), moment(until));
        let mut arguments = vec![
            "ca",
            "-batch",
            "-config",
            text(&config),
            "-rand_serial",
            "-preserveDN",
            "-notext",
            "-extfile",
            text(&file),
            "-startdate",
            &from,
            "-enddate",
            &until,
            "-in",
            text(request),
            "-out",
            text(certificate),
        ];
        if let Some(subject) = subject {
            arguments.extend(["-utf8", "-subj", subject]);
        }
        openssl(&arguments);
    }

    /// Signs a certificate for a new key.
    pub fn issue(&self, leaf: &Leaf) -> Identity {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let key = format!("{number}.key");
        self.new_key(&key);
        let request = self.request(&key, &leaf.subject);
        let certificate = self.path(&format!("{number}.pem"));
        self.sign(&request, &leaf.extensions(), &leaf.from, &leaf.until, Some(&leaf.subject), &certificate);
        self.identity(number, certificate)
    }

    /// Signs another certificate for the key of one of this authority's own.
    pub fn renew(&self, before: &Identity, leaf: &Leaf) -> Identity {
        let name = before.key.file_name().and_then(|name| name.to_str()).expect("a key of ours");
        let request = self.request(name, &leaf.subject);
        let certificate = self.path(&format!("{name}.renewed.pem"));
        self.sign(&request, &leaf.extensions(), &leaf.from, &leaf.until, Some(&leaf.subject), &certificate);
        Identity { chain: certificate.clone(), certificate, key: before.key.clone() }
    }

    fn identity(&self, number: u32, certificate: PathBuf) -> Identity {
        let chain = self.path(&format!("{number}.chain.pem"));
        let own = fs::read_to_string(&certificate).expect("just signed");
        fs::write(&chain, own + &self.between).expect("a scratch file");
        Identity { chain, certificate, key: self.path(&format!("{number}.key")) }
    }

    /// A certificate that may sign answers about this authority's certificates (RFC 6960, section 4.2.2.2).
    pub fn delegate(&self) -> Identity {
        let leaf = Leaf { usage: Some("OCSPSigning".to_owned()), ..Leaf::of("responder") };
        self.issue(&leaf)
    }

    /// The authority itself, as a signer of its own answers.
    pub fn signer(&self) -> Identity {
        Identity { chain: self.path("ca.pem"), certificate: self.path("ca.pem"), key: self.path("ca.key") }
    }

    /// Writes a certificate down as revoked.
    pub fn revoke(&self, identity: &Identity) {
        let _turn = self.turn();
        let config = self.path("ca.cnf");
        openssl(&["ca", "-config", text(&config), "-revoke", text(&identity.certificate)]);
    }

    /// Revokes the certificate of an authority under this one.
    pub fn revoke_authority(&self, other: &Self) {
        self.revoke(&other.signer());
    }

    /// Strikes a certificate out of the books, so that a responder knows nothing of it.
    pub fn forget(&self, identity: &Identity) {
        let _turn = self.turn();
        let serial = openssl(&["x509", "-in", text(&identity.certificate), "-noout", "-serial"]);
        let serial = serial.trim().strip_prefix("serial=").expect("a serial number").to_owned();
        let index = fs::read_to_string(self.path("index.txt")).expect("the books");
        let kept: String = index.split_inclusive('\n').filter(|line| !line.contains(&serial)).collect();
        assert!(kept.len() < index.len(), "the certificate is in the books");
        fs::write(self.path("index.txt"), kept).expect("the books");
    }

    /// A revocation list in PEM.
    pub fn list(&self) -> String {
        self.list_of("-1 hour", "+7 days", &[])
    }

    /// A revocation list that is past its next update.
    pub fn stale_list(&self) -> String {
        self.list_of("-3 days", "-1 day", &[])
    }

    /// A list that only says what has changed.
    pub fn delta_list(&self) -> String {
        self.list_of("-1 hour", "+7 days", &["-crlexts", "delta"])
    }

    fn list_of(&self, from: &str, until: &str, more: &[&str]) -> String {
        let _turn = self.turn();
        let config = self.path("ca.cnf");
        let (from, until) = (moment(from), moment(until));
        let mut arguments = vec![
            "ca",
            "-config",
            text(&config),
            "-gencrl",
            "-crl_lastupdate",
            &from,
            "-crl_nextupdate",
            &until,
        ];
        arguments.extend(more);
        openssl(&arguments)
    }

    /// The authority's own certificate in PEM: what a customer sets for a cluster, if it is a root.
    pub fn pem(&self) -> String {
        fs::read_to_string(self.path("ca.pem")).expect("an authority has a certificate")
    }

    /// Where that certificate lies.
    pub fn certificate(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Where `openssl ca` keeps its books.
    pub fn index(&self) -> PathBuf {
        self.path("index.txt")
    }
}

/// A certificate that nobody signed but its own key.
pub fn self_signed(below: &Path, user: &str) -> Identity {
    let directory = below.join(format!("self-signed-{user}"));
    fs::create_dir_all(&directory).expect("a scratch directory");
    let (certificate, key) = (directory.join("self.pem"), directory.join("self.key"));
    let subject = format!("/CN={user}");
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "10",
        "-subj",
        &subject,
        "-addext",
        "extendedKeyUsage=clientAuth",
        "-keyout",
        text(&key),
        "-out",
        text(&certificate),
    ]);
    Identity { chain: certificate.clone(), certificate, key }
}
