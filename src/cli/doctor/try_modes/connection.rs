//! A connection whose reads have deadlines, with TLS over it once that is started.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error as RustlsError,
    HandshakeKind, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// The settings of TLS for a control connection and its data connections, which resume the session of the former.
pub(super) struct TlsSettings {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl TlsSettings {
    /// Trusts the certificates that this machine trusts; any certificate if `is_insecure` is set.
    pub(super) fn new(host: &str, is_insecure: bool) -> Result<Self, TlsError> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|error| TlsError::other(format!("{host}: {error}")))?;
        let builder = ClientConfig::builder();
        let builder = if is_insecure {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate))
        } else {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            builder.with_root_certificates(roots)
        };
        Ok(Self { config: Arc::new(builder.with_no_client_auth()), name })
    }
}

/// Accepts any certificate.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Why a handshake failed, and what to do.
#[derive(Debug)]
pub(super) struct TlsError {
    pub(super) says: String,
    pub(super) advice: &'static str,
}

impl TlsError {
    fn other(says: String) -> Self {
        Self {
            says,
            advice: "check the server's log and its TLS settings: TLS 1.2 or 1.3 is needed",
        }
    }
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        let says = error.to_string();
        match error.get_ref().and_then(|error| error.downcast_ref()) {
            // Whether this machine trusts it, or not.
            Some(RustlsError::InvalidCertificate(CertificateError::Other(_)))
                if says.contains("CaUsedAsEndEntity") =>
            {
                Self {
                    says: "the certificate is that of a CA (CA:TRUE), and so no certificate of a server"
                        .to_owned(),
                    advice: "give the server one with CA:FALSE, as many clients need it, too; or accept any certificate: \
                             --insecure",
                }
            }
            Some(RustlsError::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::Other(_),
            )) => Self {
                says: "the certificate is self-signed, or of a CA that this machine does not trust"
                    .to_owned(),
                advice: "add its CA to those of this machine, or accept any certificate: --insecure",
            },
            Some(RustlsError::InvalidCertificate(_)) => {
                Self { says, advice: "correct that, or accept any certificate: --insecure" }
            }
            Some(RustlsError::InvalidMessage(_)) => Self {
                says: format!("the server does not speak TLS here: {says}"),
                advice: "AUTH TLS is ftpes://HOST, and ftps://HOST is TLS from the first byte",
            },
            _ => Self::other(says),
        }
    }
}

/// A connection to the server.
pub(super) struct Connection {
    socket: Socket,
    tls: Option<ClientConnection>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { socket: Socket { stream, deadline: Instant::now() }, tls: None }
    }

    pub(super) fn own_address(&self) -> io::Result<SocketAddr> {
        self.socket.stream.local_addr()
    }

    /// Starts TLS, as a client on data connections of active mode, too (RFC 4217). Returns a description.
    pub(super) fn start_tls(
        &mut self,
        settings: &TlsSettings,
        limit: Duration,
    ) -> Result<String, TlsError> {
        let tls = ClientConnection::new(Arc::clone(&settings.config), settings.name.clone());
        let tls = self.tls.insert(tls.map_err(|error| TlsError::other(error.to_string()))?);
        self.socket.deadline = Instant::now() + limit;
        tls.complete_io(&mut self.socket).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => {
                TlsError::other(format!("TLS handshake not complete within {} s", limit.as_secs()))
            }
            _ => error.into(),
        })?;
        let version = tls.protocol_version().and_then(|version| version.as_str());
        Ok(version.unwrap_or_default().replace("v1_", " 1."))
    }

    /// Whether TLS resumed an earlier session.
    pub(super) fn is_resumed(&self) -> bool {
        self.tls.as_ref().and_then(|tls| tls.handshake_kind()) == Some(HandshakeKind::Resumed)
    }

    /// Reads available bytes; `None` if none arrive before the deadline.
    pub(super) fn read_before(
        &mut self,
        buffer: &mut [u8],
        deadline: Instant,
    ) -> io::Result<Option<usize>> {
        self.socket.deadline = deadline.max(Instant::now() + Duration::from_millis(1));
        let read = match &mut self.tls {
            Some(tls) => rustls::Stream::new(tls, &mut self.socket).read(buffer),
            None => self.socket.read(buffer),
        };
        match read.map_err(|error| (error.kind(), error)) {
            Ok(count) => Ok(Some(count)),
            Err((io::ErrorKind::TimedOut, _)) => Ok(None),
            // Many servers end a connection without the end of TLS.
            Err((io::ErrorKind::UnexpectedEof, _)) => Ok(Some(0)),
            Err((_, error)) => Err(error),
        }
    }

    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => rustls::Stream::new(tls, &mut self.socket).write_all(bytes),
            None => self.socket.write_all(bytes),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            // The end of the connection says the same.
            let _ = tls.write_tls(&mut self.socket);
        }
    }
}

struct Socket {
    stream: TcpStream,
    /// When reads end.
    deadline: Instant,
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(remaining))?;
        self.stream.read(buffer).map_err(|error| match error.kind() {
            // rustls takes this for the end of a step.
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{net::TcpListener, thread};

    use rustls::{
        ServerConfig, ServerConnection, SupportedProtocolVersion,
        pki_types::{PrivateKeyDer, pem::PemObject as _},
        version::{TLS12, TLS13},
    };

    use super::*;

    /// Self-signed.
    const CERTIFICATE: &[u8] = include_bytes!("test_certificate.pem");
    /// Self-signed, with CA:TRUE, as `openssl req -x509` makes it.
    const CA_CERTIFICATE: &[u8] = include_bytes!("test_ca_certificate.pem");
    const LIMIT: Duration = Duration::from_secs(20);

    /// A connection to a server, which `serve` plays.
    fn connected(serve: impl FnOnce(TcpStream) + Send + 'static) -> Connection {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let server = listener.local_addr().unwrap();
        thread::spawn(move || serve(listener.accept().unwrap().0));
        Connection::new(TcpStream::connect(server).unwrap())
    }

    pub(in super::super) fn server(
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ServerConfig> {
        server_with(version, CERTIFICATE)
    }

    fn server_with(version: &'static SupportedProtocolVersion, pem: &[u8]) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from_pem_slice(pem).unwrap();
        let certificate = CertificateDer::from_pem_slice(pem).unwrap();
        let builder = ServerConfig::builder_with_protocol_versions(&[version]);
        let config = builder.with_no_client_auth().with_single_cert(vec![certificate], key);
        Arc::new(config.unwrap())
    }

    /// A server that says "hello" inside TLS, and ends TLS if `is_polite`.
    pub(in super::super) fn greet(
        mut stream: TcpStream,
        config: Arc<ServerConfig>,
        is_polite: bool,
    ) {
        let mut tls = ServerConnection::new(config).unwrap();
        let _ = rustls::Stream::new(&mut tls, &mut stream).write_all(b"hello");
        if is_polite {
            tls.send_close_notify();
            let _ = tls.write_tls(&mut stream);
        }
    }

    /// The version of TLS of a connection with these settings, and whether it resumes a session.
    fn greeted(
        settings: &TlsSettings,
        server: &Arc<ServerConfig>,
        is_polite: bool,
    ) -> (String, bool) {
        let server = Arc::clone(server);
        let mut connection = connected(move |stream| greet(stream, server, is_polite));
        let version = connection.start_tls(settings, LIMIT).unwrap();
        let (mut text, mut chunk) = (Vec::new(), [0; 3]);
        loop {
            let count = connection.read_before(&mut chunk, Instant::now() + LIMIT).unwrap();
            match count.expect("the greeting before the deadline") {
                0 => break,
                count => text.extend_from_slice(&chunk[..count]),
            }
        }
        assert_eq!(text, b"hello");
        (version, connection.is_resumed())
    }

    #[test]
    fn later_connections_resume_the_session_of_their_settings() {
        for (version, said, is_polite) in [
            (&TLS12, "TLS 1.2", true),
            (&TLS12, "TLS 1.2", false),
            (&TLS13, "TLS 1.3", true),
            (&TLS13, "TLS 1.3", false),
        ] {
            let server = server(version);
            let settings = || TlsSettings::new("ftp.test", true).unwrap();
            let (first, other) = (settings(), settings());
            let is_resumed = |settings, expected| {
                let found = greeted(settings, &server, is_polite);
                assert_eq!(found, (said.to_owned(), expected), "{is_polite}");
            };
            is_resumed(&first, false);
            for _ in 0..4 {
                is_resumed(&first, true);
            }
            is_resumed(&other, false);
        }
    }

    #[test]
    fn a_refused_certificate_says_why_and_names_the_option() {
        for (pem, says, advice) in [
            (CERTIFICATE, "the certificate is self-signed", "add its CA"),
            // To add it would not help.
            (
                CA_CERTIFICATE,
                "the certificate is that of a CA",
                "give the server one with CA:FALSE",
            ),
        ] {
            let server = server_with(&TLS13, pem);
            let mut connection = connected(move |stream| greet(stream, server, true));
            let settings = TlsSettings::new("ftp.test", false).unwrap();
            let error = connection.start_tls(&settings, LIMIT).unwrap_err();
            assert!(error.says.starts_with(says) && error.advice.starts_with(advice), "{error:?}");
            assert!(error.advice.ends_with("--insecure"), "{error:?}");
        }
    }

    #[test]
    fn a_handshake_that_does_not_end_is_cut_off() {
        let settings = TlsSettings::new("ftp.test", true).unwrap();
        // A long record, byte by byte.
        let mut trickling = connected(|mut stream| {
            stream.write_all(&[22, 3, 3, 64, 0]).unwrap();
            while stream.write_all(&[0]).is_ok() {
                thread::sleep(Duration::from_millis(100));
            }
        });
        let error = trickling.start_tls(&settings, Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.says, "TLS handshake not complete within 1 s");
    }
}
