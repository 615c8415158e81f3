//! A real S3 server whose key may not do everything.

use s3s::S3Result;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

use super::s3::{S3Server, S3ServerOptions};

/// Says whether an operation (`GetObject`, ...) on a path and query is allowed.
pub(crate) type May = fn(&str, &str) -> bool;

struct Rights(May);

#[async_trait::async_trait]
impl S3Access for Rights {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let asked = context.uri().path_and_query().map_or("", |asked| asked.as_str());
        match (self.0)(context.s3_op().name(), asked) {
            true => Ok(()),
            false => Err(s3s::s3_error!(AccessDenied, "not with this key")),
        }
    }
}

/// Starts to serve a folder to a key that may do what `may` allows.
pub(crate) fn start(options: &S3ServerOptions<'_>, may: May) -> std::io::Result<S3Server> {
    std::fs::create_dir_all(options.folder.join(options.bucket))?;
    let files = s3s_fs::FileSystem::new(options.folder).map_err(|error| std::io::Error::other(format!("{error:?}")))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(options.access_key, options.secret_key));
    builder.set_access(Rights(may));
    S3Server::serve(builder.build(), options.port)
}
