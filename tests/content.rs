//! Which file a target means, and what is said about it: indexes, redirects, names, links, types, siblings.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::common::{Server, Site, on_every_engine};

mod common;

fn make_fifo(site: &Site, name: &str) {
    mknodat(CWD, site.path(name), FileType::Fifo, Mode::RWXU, 0).unwrap();
}

#[test]
fn a_directory_is_its_index_or_a_redirect_to_it() {
    on_every_engine(|engine| {
        let site = Site::with(&[
            ("index.html", "root"),
            ("sub/index.html", "sub"),
            ("sub/deep/index.html", "deep"),
            ("bare/file.txt", "file"),
            ("odd/index.html/x", "the index is a folder"),
        ]);
        let server = Server::start(engine, &site, &[]);
        for (target, status, said) in [
            ("/", 200, "root"),
            ("/index.html", 200, "root"),
            ("/?q", 200, "root"),
            ("/sub/", 200, "sub"),
            ("/sub/?q=/a/../b", 200, "sub"),
            ("/sub/deep/", 200, "deep"),
            ("/sub", 301, "/sub/"),
            ("/sub?", 301, "/sub/?"),
            ("/sub?a=1&b=%20c", 301, "/sub/?a=1&b=%20c"),
            ("/sub?\u{fc}\"<|>", 301, "/sub/?%C3%BC%22%3C%7C%3E"),
            ("/sub/deep", 301, "/sub/deep/"),
            ("/sub/.", 200, "sub"),
            ("/sub/deep/..", 200, "sub"),
            ("//sub", 301, "/sub/"),
            ("/sub//deep", 301, "/sub/deep/"),
            ("http://elsewhere/sub", 301, "/sub/"),
            ("/bare", 301, "/bare/"),
            ("/bare/", 404, ""),
            ("/odd/", 404, ""),
            ("/odd/index.html", 301, "/odd/index.html/"),
            ("/index.html/", 404, ""),
            ("/bare/file.txt/", 404, ""),
            ("/bare/file.txt/x", 404, ""),
            ("/none/", 404, ""),
        ] {
            let response = server.get(target);
            assert_eq!(response.status, status, "{target}");
            match status {
                200 => assert_eq!(response.text(), said, "{target}"),
                301 => assert_eq!(response.value("location"), said, "{target}"),
                _ => assert_eq!(response.field("location"), None, "{target}"),
            }
        }
    });
}

#[test]
fn index_files_are_tried_in_order() {
    on_every_engine(|engine| {
        let site = Site::with(&[("both/a.htm", "a"), ("both/b.html", "b"), ("one/b.html", "b")]);
        make_fifo(&site, "one/a.htm");
        let server = Server::start(engine, &site, &["--index-files", "a.htm,b.html"]);
        for (target, body) in [("/both/", "a"), ("/one/", "b")] {
            assert_eq!(server.get(target).text(), body, "{target}");
        }
        let server = Server::start(engine, &site, &["--index-files", ""]);
        assert_eq!(server.get("/both/").status, 404);
    });
}

#[test]
fn names_are_what_their_bytes_say() {
    let long = "n".repeat(255);
    let too_long = format!("/{}", "n".repeat(256));
    let too_deep = "/d".repeat(3000);
    on_every_engine(|engine| {
        let site = Site::new();
        for (name, target) in [
            ("with space.txt".as_bytes(), "/with%20space.txt"),
            ("\u{fc}.txt".as_bytes(), "/%C3%BC.txt"),
            ("\u{fc}.txt".as_bytes(), "/%c3%bc.txt"),
            (b"\xff.txt", "/%FF.txt"),
            (b"100%.txt", "/100%25.txt"),
            (b"%41.txt", "/%2541.txt"),
            (b"a+b.txt", "/a+b.txt"),
            (b"q?.txt", "/q%3F.txt"),
            (b"h#.txt", "/h%23.txt"),
            (b"\\.txt", "/%5C.txt"),
            (b"quote\".txt", "/quote%22.txt"),
            (b"new\nline.txt", "/new%0Aline.txt"),
            (b"..txt", "/a/../%2E.txt"),
            (b"a..txt", "/a..txt"),
            (long.as_bytes(), &format!("/{long}")),
        ] {
            fs::write(site.root().join(OsStr::from_bytes(name)), target).unwrap();
            let hidden = ["--include-hidden"];
            let server = Server::start(engine, &site, &hidden[..usize::from(name[0] == b'.')]);
            let response = server.get(target);
            assert_eq!((response.status, response.text()), (200, target.to_owned()), "{target}");
        }
        let server = Server::start(engine, &site, &[]);
        for target in ["/A+B.TXT", "/A.txt", "/a%2", "/a%2Gb", "/a%00b", &too_long, &too_deep] {
            let status = server.get(target).status;
            assert!(matches!(status, 400 | 404), "{target}: {status}");
        }
    });
}

#[test]
fn a_redirect_stays_on_this_host_and_is_one_line() {
    on_every_engine(|engine| {
        let site = Site::new();
        let names =
            ["evil.com", "\\evil.com", "\u{fc} dir", "x\r\nSet-Cookie: y", "a\"<b>", "%2e%2e", "a:b@c"];
        for name in names {
            site.write(&format!("{name}/index.html"), name);
        }
        let server = Server::start(engine, &site, &[]);
        for (name, target, location) in [
            (names[0], "//evil.com", "/evil.com/"),
            (names[0], "///evil.com?//evil.com", "/evil.com/?//evil.com"),
            (names[0], "/./evil.com", "/evil.com/"),
            (names[1], "/\\evil.com", "/%5Cevil.com/"),
            (names[1], "/%5cevil.com", "/%5Cevil.com/"),
            (names[2], "/%C3%BC%20dir", "/%C3%BC%20dir/"),
            (names[3], "/x%0D%0ASet-Cookie:%20y", "/x%0D%0ASet-Cookie:%20y/"),
            (names[4], "/a%22%3Cb%3E", "/a%22%3Cb%3E/"),
            (names[5], "/%252e%252e", "/%252e%252e/"),
            (names[6], "/a:b@c", "/a:b@c/"),
        ] {
            let response = server.get(target);
            assert_eq!((response.status, response.value("location")), (301, location), "{target}");
            assert_eq!(server.get(location).text(), name, "{location}");
        }
    });
}

#[test]
fn nothing_outside_the_root_is_ever_served() {
    on_every_engine(|engine| {
        let site = Site::with(&[("index.html", "root"), ("sub/x", "x")]);
        fs::write(site.outside().join("secret"), "secret").unwrap();
        let server = Server::start(engine, &site, &["--include-hidden"]);
        for target in [
            "/../secret",
            "/sub/../../secret",
            "/%2e%2e/secret",
            "/%2E%2E%2Fsecret",
            "/..%2fsecret",
            "/..%5csecret",
            "/..\\secret",
            "/sub/..%2f..%2fsecret",
            "/%252e%252e/secret",
            "/..;/secret",
            "/.../secret",
            "/..",
            "/..?/secret",
            "/%c0%ae%c0%ae/secret",
            "http://x/../secret",
            "/sub/%00/../../secret",
        ] {
            let response = server.get(target);
            assert!(matches!(response.status, 400 | 404), "{target}: {}", response.status);
            assert!(!response.text().contains("secret"), "{target}");
        }
        let absolute = server.get(&format!("/{}", site.outside().join("secret").display()));
        assert_eq!(absolute.status, 404);
    });
}

#[test]
fn hidden_names_are_hidden_but_for_well_known() {
    let files = [
        (".env", 404),
        (".git/config", 404),
        ("sub/.hidden", 404),
        (".well-known/security.txt", 200),
        (".well-known/.x", 404),
        ("sub/.well-known/x", 404),
        ("..x", 404),
        ("a.b/c.d", 200),
    ];
    on_every_engine(|engine| {
        let site = Site::with(&files.map(|(name, _)| (name, name)));
        let (careful, open) =
            (Server::start(engine, &site, &[]), Server::start(engine, &site, &["--include-hidden"]));
        for (name, status) in files {
            for target in [format!("/{name}"), format!("/{}", name.replace('.', "%2E"))] {
                assert_eq!(careful.get(&target).status, status, "{target}");
                assert_eq!(open.get(&target).text(), name, "{target}");
            }
        }
        // A folder that is hidden does not even show that it is there.
        assert_eq!((careful.get("/.git").status, open.get("/.git").status), (404, 301));
    });
}

#[test]
fn symbolic_links_are_followed_as_far_as_the_policy_says() {
    // Target; statuses under deny, inside, all.
    let cases = [
        ("/a.txt", [200, 200, 200]),
        ("/link.txt", [404, 200, 200]),
        ("/sub/up.txt", [404, 200, 200]),
        ("/chain.txt", [404, 200, 200]),
        ("/folder/x.txt", [404, 200, 200]),
        ("/folder", [404, 301, 301]),
        ("/there-and-back.txt", [404, 200, 200]),
        ("/absolute.txt", [404, 200, 200]),
        ("/absolute/x.txt", [404, 200, 200]),
        ("/absolute", [404, 301, 301]),
        ("/out.txt", [404, 404, 200]),
        ("/out/secret.txt", [404, 404, 200]),
        ("/beside/secret.txt", [404, 404, 200]),
        ("/beside.txt", [404, 404, 200]),
        ("/dangling.txt", [404, 404, 404]),
        ("/loop.txt", [404, 404, 404]),
        ("/magic/etc/passwd", [404, 404, 404]),
    ];
    on_every_engine(|engine| {
        let site = Site::with(&[("a.txt", "a"), ("sub/x.txt", "x"), ("b.txt", "b")]);
        fs::write(site.outside().join("secret.txt"), "secret").unwrap();
        let (absolute, absolute_folder) = (site.path("a.txt"), site.path("sub"));
        let (beside, beside_secret) = (site.outside().join("root2"), site.outside().join("root2/secret.txt"));
        fs::create_dir(&beside).unwrap();
        fs::write(&beside_secret, "secret").unwrap();
        for (to, name) in [
            ("a.txt", "link.txt"),
            ("../a.txt", "sub/up.txt"),
            ("sub/up.txt", "chain.txt"),
            ("sub", "folder"),
            ("../root/a.txt", "there-and-back.txt"),
            (absolute.to_str().unwrap(), "absolute.txt"),
            (absolute_folder.to_str().unwrap(), "absolute"),
            // A folder beside the root whose name begins as the root's does.
            (beside.to_str().unwrap(), "beside"),
            (beside_secret.to_str().unwrap(), "beside.txt"),
            ("../secret.txt", "out.txt"),
            ("..", "out"),
            ("none", "dangling.txt"),
            ("loop.txt", "loop.txt"),
            ("/proc/self/root", "magic"),
            // A sibling is a file like any other.
            ("../secret.txt", "b.txt.gz"),
        ] {
            symlink(to, site.path(name)).unwrap();
        }
        for (number, policy) in ["deny", "inside", "all"].into_iter().enumerate() {
            let server = Server::start(engine, &site, &["--symlinks", policy]);
            for (target, statuses) in cases {
                let response = server.get(target);
                assert_eq!(response.status, statuses[number], "{target} under {policy}");
                assert!(policy == "all" || !response.text().contains("secret"), "{target} under {policy}");
            }
            let coded = server.ask("GET", "/b.txt", &["Accept-Encoding: gzip"]).text();
            assert_eq!(coded, if policy == "all" { "secret" } else { "b" }, "{policy}");
        }
        let server = Server::start(engine, &site, &[]);
        assert_eq!(server.get("/out.txt").status, 404, "`inside` is the default");
    });
}

#[test]
fn what_is_no_regular_file_is_not_there_and_holds_nobody_up() {
    on_every_engine(|engine| {
        let site = Site::with(&[("a.txt", "a"), ("b.txt", "b")]);
        make_fifo(&site, "fifo");
        make_fifo(&site, "a.txt.gz");
        fs::create_dir(site.path("b.txt.gz")).unwrap();
        let _listener = UnixListener::bind(site.path("socket")).unwrap();
        let server = Server::start(engine, &site, &[]);
        let mut client = server.connect();
        for _ in 0..3 {
            assert_eq!(client.get("/fifo").status, 404);
            assert_eq!(client.get("/socket").status, 404);
            for (target, body) in [("/a.txt", "a"), ("/b.txt", "b")] {
                client.request("GET", target, &["Accept-Encoding: gzip"]);
                let response = client.response();
                assert_eq!((response.text(), response.field("content-encoding")), (body.into(), None));
            }
        }
    });
}

#[test]
fn a_name_tells_the_type() {
    on_every_engine(|engine| {
        let site = Site::new();
        let server = Server::start(engine, &site, &[]);
        for (name, wanted) in [
            ("a.html", "text/html; charset=utf-8"),
            ("A.HTM", "text/html; charset=utf-8"),
            ("a.css", "text/css; charset=utf-8"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.min.mjs", "text/javascript; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.svg", "image/svg+xml"),
            ("a.wasm", "application/wasm"),
            ("a.woff2", "font/woff2"),
            ("a.tar.gz", "application/gzip"),
            ("none", "application/octet-stream"),
            ("a.unheard-of", "application/octet-stream"),
        ] {
            site.write(name, "x");
            let response = server.get(&format!("/{name}"));
            assert_eq!(response.value("content-type"), wanted, "{name}");
            assert_eq!(response.value("x-content-type-options"), "nosniff", "{name}");
            assert_eq!(response.value("accept-ranges"), "bytes", "{name}");
        }
    });
}

#[test]
fn cache_control_is_said_of_files_and_of_nothing_else() {
    let value = "public, max-age=3600";
    on_every_engine(|engine| {
        let site = Site::with(&[("a.txt", "alpha"), ("sub/x", "x")]);
        let server = Server::start(engine, &site, &["--cache-control", value]);
        let etag = server.get("/a.txt").value("etag").to_owned();
        let known = format!("If-None-Match: {etag}");
        for (target, field, status) in [
            ("/a.txt", "Accept: */*", 200),
            ("/a.txt", "Range: bytes=0-1", 206),
            ("/a.txt", "Range: bytes=0-0,2-2", 206),
            ("/a.txt", &known, 304),
            ("/a.txt", "If-Match: \"x\"", 412),
            ("/a.txt", "Range: bytes=9-", 416),
            ("/none", "Accept: */*", 404),
            ("/sub", "Accept: */*", 301),
        ] {
            let response = server.ask("GET", target, &[field]);
            let wanted = (status < 400 && status != 301).then_some(value);
            assert_eq!(
                (response.status, response.field("cache-control")),
                (status, wanted),
                "{target} {field}"
            );
        }
        assert_eq!(Server::start(engine, &site, &[]).get("/a.txt").field("cache-control"), None);
    });
}

#[test]
fn a_precompressed_sibling_is_sent_to_who_likes_it() {
    let files = [
        ("page.html", "plain page, the longest of them"),
        ("page.html.br", "br page"),
        ("page.html.zst", "zstd page"),
        ("page.html.gz", "gzip page"),
        ("index.html", "plain index"),
        ("index.html.br", "br index"),
        ("some.css", "plain css"),
        ("some.css.gz", "gzip css"),
        ("orphan.js.gz", "gzip orphan"),
        ("alone.txt", "plain text"),
    ];
    on_every_engine(|engine| {
        let site = Site::with(&files);
        let server = Server::start(engine, &site, &[]);
        for (target, accepted, body) in [
            ("/page.html", "", "plain page, the longest of them"),
            ("/page.html", "gzip", "gzip page"),
            ("/page.html", "gzip, deflate, br", "br page"),
            ("/page.html", "gzip, deflate, br, zstd", "br page"),
            ("/page.html", "gzip, zstd", "zstd page"),
            ("/page.html", "br;q=0.2, gzip;q=0.8", "gzip page"),
            ("/page.html", "br;q=0, gzip;q=0", "plain page, the longest of them"),
            ("/page.html", "identity", "plain page, the longest of them"),
            ("/page.html", "deflate, x-unknown", "plain page, the longest of them"),
            ("/page.html", "*", "br page"),
            ("/page.html?v=2", "GZIP", "gzip page"),
            ("/", "br, gzip", "br index"),
            ("/", "gzip", "plain index"),
            ("/some.css", "br, gzip", "gzip css"),
            ("/some.css", "br", "plain css"),
            ("/alone.txt", "br, gzip", "plain text"),
        ] {
            // Twice: once loaded, once cached.
            for _ in 0..2 {
                let response = server.ask("GET", target, &[&format!("Accept-Encoding: {accepted}")]);
                let case = format!("{target} accepting {accepted:?}");
                assert_eq!((response.status, &*response.text()), (200, body), "{case}");
                let coding = body.split(' ').next().filter(|&coding| coding != "plain");
                assert_eq!(response.field("content-encoding"), coding, "{case}");
                let vary = (target != "/alone.txt").then_some("Accept-Encoding");
                assert_eq!(response.field("vary"), vary, "{case}");
                let kind = match target {
                    "/some.css" => "text/css; charset=utf-8",
                    "/alone.txt" => "text/plain; charset=utf-8",
                    _ => "text/html; charset=utf-8",
                };
                assert_eq!(response.value("content-type"), kind, "{case}");
            }
        }
        assert_eq!(server.ask("GET", "/orphan.js", &["Accept-Encoding: gzip"]).status, 404);
        let archive = server.ask("GET", "/page.html.gz", &["Accept-Encoding: gzip"]);
        assert_eq!(
            (archive.field("content-encoding"), archive.value("content-type")),
            (None, "application/gzip")
        );
    });
}

#[test]
fn each_coding_is_a_representation_of_its_own() {
    on_every_engine(|engine| {
        // The same bytes on purpose: even so the tags must differ (RFC 9110 section 8.8.3.3).
        let site = Site::with(&["a.txt", "a.txt.br", "a.txt.gz"].map(|name| (name, "0123456789")));
        let server = Server::start(engine, &site, &[]);
        let codings = ["identity", "br", "gzip"].map(|coding| format!("Accept-Encoding: {coding}"));
        let ask = |coding: &str, field: &str| server.ask("GET", "/a.txt", &[coding, field]);
        let tags: Vec<_> =
            codings.iter().map(|coding| ask(coding, "Accept: */*").value("etag").to_owned()).collect();
        for (coding, own) in codings.iter().zip(&tags) {
            for tag in &tags {
                let (same, condition) = (tag == own, format!("If-None-Match: {tag}"));
                let response = ask(coding, &condition);
                assert_eq!(response.status, if same { 304 } else { 200 }, "{coding} {condition}");
                assert_eq!(response.value("etag"), own);
                assert_eq!(response.value("vary"), "Accept-Encoding");
            }
            let part = ask(coding, "Range: bytes=2-4");
            assert_eq!((part.status, part.text(), part.value("etag")), (206, "234".into(), &**own));
        }
    });
}

#[test]
fn a_sibling_that_was_there_but_of_no_use_is_noticed_once_it_is() {
    on_every_engine(|engine| {
        let site = Site::with(&[("sub/page.html", "as it is"), ("elsewhere/other.html", "other")]);
        symlink("../elsewhere/page.html.gz", site.path("sub/page.html.gz")).unwrap();
        // From here on an unchanged directory proves that no name has come or gone in it.
        std::thread::sleep(Duration::from_millis(3100));
        let server = Server::start(engine, &site, &["--fresh", "300ms"]);
        let ask = || server.ask("GET", "/sub/page.html", &["Accept-Encoding: gzip"]).text();
        for _ in 0..2 {
            assert_eq!(ask(), "as it is");
            std::thread::sleep(Duration::from_millis(500));
        }
        site.write("elsewhere/page.html.gz", "smaller");
        std::thread::sleep(Duration::from_millis(900));
        let _ = ask();
        assert_eq!(ask(), "smaller");
    });
}

#[test]
fn a_file_that_changes_in_an_old_directory_is_noticed() {
    on_every_engine(|engine| {
        let names: Vec<String> = (0..4).map(|number| format!("sub/{number}.html")).collect();
        let site = Site::with::<&str>(&[]);
        for name in &names {
            site.write(name, "old");
            site.write(&format!("{name}.gz"), "OLD");
        }
        // From here on an unchanged directory proves that no name has come or gone in it.
        std::thread::sleep(Duration::from_millis(3100));
        let server = Server::start(engine, &site, &["--fresh", "300ms"]);
        let ask = |fields: &[&str]| -> Vec<String> {
            let answers = names.iter().map(|name| server.ask("GET", &format!("/{name}"), fields));
            answers.map(|answer| answer.text()).collect()
        };
        let both = || (ask(&[]), ask(&["Accept-Encoding: gzip"]));
        let four = |text: &str| vec![text.to_owned(); 4];
        for _ in 0..4 {
            assert_eq!(both(), (four("old"), four("OLD")));
            std::thread::sleep(Duration::from_millis(400));
        }
        for name in &names {
            site.write(name, "new");
            site.write(&format!("{name}.gz"), "NEW");
        }
        std::thread::sleep(Duration::from_millis(900));
        let _ = both();
        assert_eq!(both(), (four("new"), four("NEW")));

        // The same files, and yet no longer beneath the root.
        std::thread::sleep(Duration::from_millis(3100));
        let _ = both();
        let outside = Site::with::<&str>(&[]);
        fs::rename(site.path("sub"), outside.path("sub")).unwrap();
        symlink(outside.path("sub"), site.path("sub")).unwrap();
        std::thread::sleep(Duration::from_millis(900));
        let statuses = names.iter().map(|name| server.ask("GET", &format!("/{name}"), &[]).status);
        assert!(statuses.eq([404; 4]));
    });
}

#[test]
fn a_sibling_that_comes_or_goes_in_an_old_directory_is_noticed() {
    on_every_engine(|engine| {
        let site = Site::with(&[("sub/page.html", "as it is"), ("other.html", "other")]);
        // So many without any that it is known in the end that there is none at all.
        let many = |range: std::ops::Range<u8>| range.map(|number| format!("sub/{number}.html"));
        for name in many(0..40) {
            site.write(&name, "one of many");
        }
        // From here on an unchanged directory proves that no name has come or gone in it.
        std::thread::sleep(Duration::from_millis(3100));
        let server = Server::start(engine, &site, &["--fresh", "300ms"]);
        let ask = |target: &str| server.ask("GET", target, &["Accept-Encoding: gzip"]).text();
        for of_many in [0..20, 20..22, 22..24] {
            assert_eq!((ask("/sub/page.html"), ask("/other.html")), ("as it is".into(), "other".into()));
            assert!(many(of_many).all(|name| ask(&format!("/{name}")) == "one of many"));
            std::thread::sleep(Duration::from_millis(500));
        }
        for name in many(0..40) {
            site.write(&format!("{name}.gz"), "one");
        }
        site.write("sub/page.html.gz", "smaller");
        site.write("other.html.gz", "less");
        std::thread::sleep(Duration::from_millis(900));
        // The first to ask has it looked at again.
        let _ = (ask("/sub/page.html"), ask("/other.html"));
        assert_eq!((ask("/sub/page.html"), ask("/other.html")), ("smaller".into(), "less".into()));
        assert!(many(24..40).all(|name| ask(&format!("/{name}")) == "one"), "of who was not asked for yet");
        let _ = many(0..24).map(|name| ask(&format!("/{name}"))).count();
        assert!(many(0..24).all(|name| ask(&format!("/{name}")) == "one"));
        fs::remove_file(site.path("sub/page.html.gz")).unwrap();
        std::thread::sleep(Duration::from_millis(900));
        assert_eq!((ask("/sub/page.html"), ask("/other.html")), ("as it is".into(), "less".into()));
    });
}
