use std::os::unix::fs::MetadataExt;

use super::*;

fn arguments() -> cli::Init {
    cli::Init {
        bind: Some([127, 0, 0, 1].into()),
        port: 11514,
        enroll_port: 11515,
        nats: None,
        no_password: false,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("exists").mode() & 0o7777
}

#[test]
fn new_home_has_a_configuration_that_loads_without_a_word() {
    let directory = tempfile::tempdir().expect("directory");
    let home = directory.path().join("home");
    assert_eq!(init(Some(&home), &arguments()).expect("made"), DONE);
    let loaded = muster_config::load(&home, None).expect("good");
    assert_eq!(loaded.warnings, []);
    assert_eq!(
        (loaded.settings.remotes[0].port, loaded.settings.auth.port),
        (11514, 11515)
    );
    assert!(loaded.settings.auth.use_password);
}

#[test]
fn secrets_are_closed_to_others_and_shared_directories_are_sticky() {
    let directory = tempfile::tempdir().expect("directory");
    let home = directory.path().join("home");
    init(Some(&home), &arguments()).expect("made");
    for path in [paths::AUTHD_PASS, paths::CLIENT_KEYS, paths::CONFIG] {
        assert_eq!(mode(&home.join(path)), 0o640, "{path}");
    }
    assert_eq!(mode(&home.join(paths::AUTHD_KEY)), 0o600);
    for path in ["etc", "queue/sockets", "queue/muster", paths::RUN, paths::LOGS] {
        assert_eq!(mode(&home.join(path)), 0o1770, "{path}");
    }
    assert_eq!(mode(&home), 0o750);
}

#[test]
fn second_init_changes_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let home = directory.path().join("home");
    init(Some(&home), &arguments()).expect("made");
    let read = || {
        [paths::CONFIG, paths::AUTHD_PASS, paths::AUTHD_CERT, paths::AUTHD_KEY]
            .map(|path| fs::read(home.join(path)).expect("read"))
    };
    let before = read();
    fs::write(home.join(paths::CLIENT_KEYS), "001 a any k\n").expect("written");
    init(Some(&home), &cli::Init { port: 1, ..arguments() }).expect("made again");
    assert_eq!(read(), before);
    assert_eq!(fs::read(home.join(paths::CLIENT_KEYS)).expect("read"), b"001 a any k\n");
}

#[test]
fn directory_with_something_else_in_it_is_refused_untouched() {
    let directory = tempfile::tempdir().expect("directory");
    fs::write(directory.path().join("precious"), "x").expect("written");
    let error = init(Some(directory.path()), &arguments()).expect_err("refused");
    assert!(error.to_string().contains("is no Muster home"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 1);
}

#[test]
fn without_a_password_there_is_no_password_file() {
    let directory = tempfile::tempdir().expect("directory");
    let home = directory.path().join("home");
    init(
        Some(&home),
        &cli::Init {
            no_password: true,
            ..arguments()
        },
    )
    .expect("made");
    assert!(!home.join(paths::AUTHD_PASS).exists());
    assert!(
        !muster_config::load(&home, None)
            .expect("good")
            .settings
            .auth
            .use_password
    );
}

#[test]
fn bad_nats_url_is_refused_before_it_is_written() {
    let directory = tempfile::tempdir().expect("directory");
    let home = directory.path().join("home");
    let arguments = cli::Init {
        nats: Some("gopher://x".to_owned()),
        ..arguments()
    };
    let error = init(Some(&home), &arguments).expect_err("refused");
    assert_eq!(muster_service::exit::code_of(&error), BAD_CONFIG);
    assert!(!home.join(paths::CONFIG).exists());
}

#[test]
fn passwords_differ_and_have_letters_and_digits_only() {
    let (first, second) = (password().expect("random"), password().expect("random"));
    assert_ne!(first, second);
    assert_eq!(first.len(), PASSWORD_LEN + 1);
    assert!(
        first
            .strip_suffix(b"\n")
            .expect("a line")
            .iter()
            .all(u8::is_ascii_alphanumeric)
    );
}
