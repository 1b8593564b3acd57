"""The heart: a run is a directory, and these modules are the only ones that write its state.

Only POSIX operations that hold on NFS, Lustre and GPFS are used: link, rename, O_EXCL create, append by one writer,
fsync of file and folder.
"""
