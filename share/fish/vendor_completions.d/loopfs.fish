# Made by `python3 -m manual` from loopfs.cli.usage; change that.

# Whether the options of `loopfs run` are still being written, and not its command.
function __loopfs_run_options
    set -l words (commandline -opc)
    test "$words[2]" = run; or return 1
    set -l skip 0
    for word in $words[3..-1]
        if test $skip = 1
            set skip 0
        else if contains -- $word --engine --number-from --max-devices --reserve-devices --log --config
            set skip 1
        else if not string match -q -- '-?*' $word; or test $word = --
            return 1
        end
    end
end

# The command of `loopfs run`, with its arguments.
function __loopfs_run_command
    set -l words (commandline -opc) (commandline -ct)
    set -e words[1..2]
    while set -q words[2]
        if contains -- $words[1] --engine --number-from --max-devices --reserve-devices --log --config
            set -e words[1]
        else if test $words[1] = --
            set -e words[1]
            break
        else if not string match -q -- '-?*' $words[1]
            break
        end
        set -e words[1]
    end
    complete -C (string join -- ' ' (string escape -- $words[1..-2]) $words[-1])
end

function __loopfs_pids
    loopfs ls 2>/dev/null | awk '$1 ~ /^[0-9]+$/ { print $1 }'
end

function __loopfs_devices
    set -l words (commandline -opc)
    loopfs ls 2>/dev/null | awk -v pid=$words[3] '$1 ~ /^[0-9]+$/ { on = $1 == pid } on && $1 ~ /^loop[0-9]+$/ { print $1 }'
end

complete -c loopfs -f
complete -c loopfs -n __fish_use_subcommand -l version -d 'show the version'
complete -c loopfs -n __fish_use_subcommand -l help -d 'show this help'
complete -c loopfs -n __fish_use_subcommand -a run -d 'run a command in a sandbox'
complete -c loopfs -n __fish_use_subcommand -a ls -d 'list your sandboxes with their devices and mounts'
complete -c loopfs -n __fish_use_subcommand -a kill -d 'end a sandbox'
complete -c loopfs -n __fish_use_subcommand -a detach -d 'detach a device of a sandbox'
complete -c loopfs -n __fish_use_subcommand -a doctor -d 'check whether loopfs can run here'
complete -c loopfs -n __fish_use_subcommand -a seccomp-profile -d 'print a seccomp profile for containers that run loopfs, or that an agent serves'
complete -c loopfs -n __fish_use_subcommand -a apparmor-profile -d 'print an AppArmor profile for machines that restrict user namespaces'
complete -c loopfs -n __fish_use_subcommand -a agent -d 'give loop devices to containers without loopfs (experimental)'
complete -c loopfs -n __loopfs_run_options -l bare -d 'start without loop devices; mount -t loop none DIRECTORY makes an instance'
complete -c loopfs -n __loopfs_run_options -l engine -x -a "btrfs=embedded btrfs=deny erofs=erofsfuse erofs=deny exfat=exfat exfat=deny ext2=ext4 ext2=fuse2fs ext2=deny ext3=ext4 ext3=fuse2fs ext3=deny ext4=ext4 ext4=fuse2fs ext4=deny iso9660=iso9660 iso9660=fuseiso iso9660=deny msdos=vfat msdos=deny ntfs=ntfs-3g ntfs=embedded ntfs=deny ntfs3=ntfs-3g ntfs3=embedded ntfs3=deny squashfs=squashfuse squashfs=embedded squashfs=deny udf=udf udf=deny vfat=vfat vfat=deny xfs=embedded xfs=deny" -d 'mount filesystems of TYPE by ENGINE; deny refuses them. Can be given several times'
complete -c loopfs -n __loopfs_run_options -l number-from -x -d 'the first device is loopN, and the host'\''s devices are hidden; without it, devices are numbered after the host'\''s'
complete -c loopfs -n __loopfs_run_options -l max-devices -x -d 'at most N loop devices, in all user namespaces together'
complete -c loopfs -n __loopfs_run_options -l reserve-devices -x -d 'N of these are for the sandbox'\''s own instances only; without it, a quarter'
complete -c loopfs -n __loopfs_run_options -l log -r -F -d 'write a record of each trapped system call to FILE, as JSON lines'
complete -c loopfs -n __loopfs_run_options -s v -d 'show the calls that mount and unmount on standard error'
complete -c loopfs -n __loopfs_run_options -o vv -d 'show all trapped calls'
complete -c loopfs -n __loopfs_run_options -l config -r -F -d 'read FILE instead of ~/.config/loopfs/config.toml'
complete -c loopfs -n __loopfs_run_options -l help -d 'show this help'
complete -c loopfs -n "__fish_seen_subcommand_from ls" -l json -d 'print all information as JSON'
complete -c loopfs -n "__fish_seen_subcommand_from ls" -l all -d 'list the sandboxes of all users; for root'
complete -c loopfs -n "__fish_seen_subcommand_from ls" -l help -d 'show this help'
complete -c loopfs -n "__fish_seen_subcommand_from kill" -l force -d 'end it at once by SIGKILL; data that is not yet written is lost'
complete -c loopfs -n "__fish_seen_subcommand_from kill" -l help -d 'show this help'
complete -c loopfs -n "__fish_seen_subcommand_from kill; and __fish_is_nth_token 2" -a "(__loopfs_pids)"
complete -c loopfs -n "__fish_seen_subcommand_from detach" -l help -d 'show this help'
complete -c loopfs -n "__fish_seen_subcommand_from detach; and __fish_is_nth_token 2" -a "(__loopfs_pids)"
complete -c loopfs -n "__fish_seen_subcommand_from detach; and __fish_is_nth_token 3" -a "(__loopfs_devices)"
complete -c loopfs -n "__fish_seen_subcommand_from doctor" -l json -d 'print the findings as JSON'
complete -c loopfs -n "__fish_seen_subcommand_from doctor" -l help -d 'show this help'
complete -c loopfs -n "__fish_seen_subcommand_from seccomp-profile" -l base -r -F -d 'the profile to add to; without it, the default of podman'
complete -c loopfs -n "__fish_seen_subcommand_from seccomp-profile" -l agent -r -F -d 'the socket of the agent'
complete -c loopfs -n "__fish_seen_subcommand_from seccomp-profile" -l help -d 'show this help'
complete -c loopfs -n "__fish_seen_subcommand_from apparmor-profile" -l path -r -F -d 'where loopfs is installed; without it, the usual places'
complete -c loopfs -n "__fish_seen_subcommand_from apparmor-profile" -l help -d 'show this help'
complete -c loopfs -n "__fish_seen_subcommand_from agent" -l socket -r -F -d 'the socket to listen on for container runtimes'
complete -c loopfs -n "__fish_seen_subcommand_from agent" -l help -d 'show this help'
complete -c loopfs -n "__fish_seen_subcommand_from run; and not string match -q -- '-*' (commandline -ct)" -a "(__loopfs_run_command)"
