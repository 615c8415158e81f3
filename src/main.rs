//! The `kloset-mount` program: hands over to the library.

fn main() -> std::process::ExitCode {
    kloset_mount::cli::main()
}
