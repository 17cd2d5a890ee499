//! The answer to a request, as a pure function of the request and of what is known about its target.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::LazyLock;

use crate::http::conditional::{self, Outcome, Validators};
use crate::http::parse::Single;
use crate::http::range::{self, Selection};
use crate::http::reply::ContentRange;
use crate::http::{Body, Method, Reply, Request, Status};

use super::entry::{Entry, File, Redirect};
use super::path;

/// Answers a GET or HEAD. `now` is in seconds since 1970.
#[inline]
pub fn answer<'a>(request: &Request, entry: &'a Entry, now: u64) -> Reply<'a> {
    match entry {
        Entry::File(file) if request.names_a_tag() && file.may_have_been_left() => {
            weigh_by_both_tags(request, file, now)
        }
        Entry::File(file) => weigh(request, file, &file.validators(now)),
        Entry::Redirect(redirect) => redirected(request, redirect),
        Entry::Nothing(status) => Reply::page(*status),
    }
}

/// The same for a file that was told by another tag while it was left on the disk. Who knows it by that alone
/// is told that again.
#[cold]
fn weigh_by_both_tags<'a>(request: &Request, file: &'a File, now: u64) -> Reply<'a> {
    let first = file.first_tag();
    let validators = Validators { first_etag: Some(first.as_bytes()), ..file.validators(now) };
    let reply = weigh(request, file, &validators);
    let is_known_by_it =
        !conditional::names(request, validators.etag) && conditional::names(request, first.as_bytes());
    let is_a_page = matches!(reply.body, Body::Text(_));
    if is_known_by_it && !is_a_page { file.retold(reply, &first) } else { reply }
}

#[inline]
fn weigh<'a>(request: &Request, file: &'a File, validators: &Validators) -> Reply<'a> {
    match conditional::evaluate(request, validators) {
        Outcome::Proceed => represent(request, file, validators),
        Outcome::NotModified => Reply { fields: file.fields_repeated(), ..Reply::empty(Status::NotModified) },
        Outcome::Failed => Reply::page(Status::PreconditionFailed),
    }
}

fn represent<'a>(request: &Request, file: &'a File, validators: &Validators) -> Reply<'a> {
    let bytes = file.bytes();
    let size = bytes.size();
    // Range is defined for GET alone (RFC 9110 section 14.2).
    if let Single::One(value) = request.range
        && request.method == Method::Get
        && conditional::range_applies(request, validators)
    {
        match range::select(value, size) {
            Selection::All => {}
            Selection::One(span) => {
                return Reply {
                    fields: file.fields_of_span(),
                    content_range: Some(ContentRange::Span(span.clone(), size)),
                    length: Some(span.end - span.start),
                    body: Body::Span(bytes, span),
                    ..Reply::empty(Status::PartialContent)
                };
            }
            Selection::Several(spans) => return parts(file, spans),
            Selection::Unsatisfiable => {
                return Reply {
                    content_range: Some(ContentRange::Unsatisfied(size)),
                    ..Reply::page(Status::RangeNotSatisfiable)
                };
            }
        }
    }
    Reply { fields: file.fields(), body: Body::Span(bytes, 0..size), ..Reply::empty(Status::Ok) }
}

/// multipart/byteranges (RFC 9110 section 14.6). This one allocates; it is rare.
fn parts(file: &File, spans: Vec<Range<u64>>) -> Reply<'_> {
    // Nobody can write a file that holds this boundary: it hangs on a random key of this process.
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let boundary = format!("{:016x}", KEY.hash_one((file.validators(0).etag, &spans)));
    let size = file.bytes().size();
    let type_line = String::from_utf8_lossy(file.type_line());
    let parts = spans
        .into_iter()
        .enumerate()
        .map(|(number, span)| {
            let line_end = if number == 0 { "" } else { "\r\n" };
            let (first, last) = (span.start, span.end - 1);
            let head = format!(
                "{line_end}--{boundary}\r\n{type_line}Content-Range: bytes {first}-{last}/{size}\r\n\r\n"
            );
            (head.into_bytes(), span)
        })
        .collect();
    let body = Body::Parts(file.bytes(), parts, format!("\r\n--{boundary}--\r\n").into_bytes());
    let content_type = format!("Content-Type: multipart/byteranges; boundary={boundary}\r\n");
    let mut reply = Reply {
        fields: file.fields_of_parts(),
        more_fields: Cow::Owned(content_type.into_bytes()),
        body,
        ..Reply::empty(Status::PartialContent)
    };
    reply.length = Some(reply.body_length());
    reply
}

/// To the directory, with the query the client has sent. The path is ours and begins with one slash, so the
/// client stays on this host whatever it has asked for.
fn redirected<'a>(request: &Request, redirect: &'a Redirect) -> Reply<'a> {
    let mut line = redirect.location.to_vec();
    if let Some(query) = request.query {
        line.push(b'?');
        line.extend_from_slice(path::encode_query(query).as_bytes());
    }
    line.extend_from_slice(b"\r\n");
    Reply { more_fields: Cow::Owned(line), ..Reply::page(Status::MovedPermanently) }
}
