//! `muster-natsd bundle`: what goes into the store comes out of it, and no secret goes in.

use std::{fs, process::Output};

use crate::{natsd::Home, permissions::Shipped, provisioned, server::Server};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn run(home: &Home, arguments: &[&str]) -> String {
    let done = home.run(arguments);
    assert!(done.status.success(), "{}", text(&done));
    text(&done)
}

#[test]
fn bundles_come_back_as_they_were_and_are_stored_once() {
    let server = Server::start();
    let home = provisioned(&server, "");
    let bytes: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
    let (wpk, merged) = (home.path("agent.wpk"), home.path("merged.mg"));
    fs::write(&wpk, &bytes).expect("writes");
    fs::write(&merged, "#default\n!3 agent.conf\na\n\n").expect("writes");
    let (wpk, merged) = (wpk.display().to_string(), merged.display().to_string());
    let told = run(&home, &["bundle", "put", &wpk, &merged, &wpk]);
    let names: Vec<&str> = told.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!((names.len(), names[0].len()), (3, 64));
    assert_eq!(names[0], names[2]);
    let listed = run(&home, &["bundle", "list"]);
    assert_eq!(
        listed.lines().collect::<Vec<_>>(),
        [
            told.lines().next().expect("a line"),
            told.lines().nth(1).expect("a line")
        ]
    );
    let back = home.path("back").display().to_string();
    run(&home, &["bundle", "get", names[0], "--output", &back]);
    assert!(fs::read(&back).expect("reads") == bytes);
    let missing = home.run(&["bundle", "get", &"0".repeat(64), "--output", &back]);
    assert!(!missing.status.success());
}

#[test]
fn bundle_that_was_changed_in_the_store_is_not_given_out() {
    let server = Server::start();
    let home = provisioned(&server, "");
    let file = home.path("rules.xml").display().to_string();
    fs::write(&file, "<group name=\"a\"/>").expect("writes");
    let told = run(&home, &["bundle", "put", &file]);
    let name = told.split(' ').next().expect("a name");
    crate::block_on(async {
        let jetstream = async_nats::jetstream::new(server.client().await);
        let store = jetstream.get_object_store("muster_bundles").await.expect("a store");
        store.put(name, &mut b"another".as_slice()).await.expect("puts");
    });
    let back = home.path("back");
    let got = home.run(&["bundle", "get", name, "--output", &back.display().to_string()]);
    assert!(text(&got).contains("somebody has changed it"), "{}", text(&got));
    assert!(!got.status.success() && !back.exists());
}

#[test]
fn keys_are_refused_and_the_managers_own_user_has_no_right_to_bundles() {
    let shipped = Shipped::start();
    let home = shipped.home("");
    shipped.provision(&home);
    let administrator = shipped.seed("administrator.nk", &shipped.administrator);
    let file = home.path("merged.mg").display().to_string();
    fs::write(&file, "#default\n").expect("writes");
    assert!(!home.run(&["bundle", "put", &file]).status.success());
    run(&home, &["bundle", "--nkey", &administrator, "put", &file]);
    let refused = home.run(&["bundle", "--nkey", &administrator, "put", &administrator]);
    assert!(text(&refused).contains("hold keys or passwords"), "{}", text(&refused));
    fs::write(&file, fs::read(&administrator).expect("reads")).expect("writes");
    let refused = home.run(&["bundle", "--nkey", &administrator, "put", &file]);
    assert!(text(&refused).contains("the seed of an nkey"), "{}", text(&refused));
}
