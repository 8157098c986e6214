//! Signatures of filesystems, partition tables and volume managers: a device that carries one is not
//! overwritten unasked. Offsets and magics are those of the kernels' and tools' on-disk formats.

use std::fs::File;
use std::os::unix::fs::FileExt;

const KIB: i64 = 1024;

/// Name, offset (negative: from the end), magic.
const SIGNATURES: &[(&str, i64, &[u8])] = &[
    ("an ext2, ext3 or ext4 filesystem", 1080, b"\x53\xef"),
    ("an xfs filesystem", 0, b"XFSB"),
    ("a btrfs filesystem", 64 * KIB + 64, b"_BHRfS_M"),
    ("an f2fs filesystem", KIB, b"\x10\x20\xf5\xf2"),
    ("an NTFS filesystem", 3, b"NTFS    "),
    ("an exFAT filesystem", 3, b"EXFAT   "),
    ("a ReFS filesystem", 3, b"ReFS\0\0\0\0"),
    ("a FAT filesystem", 54, b"FAT1"),
    ("a FAT filesystem", 82, b"FAT32"),
    ("an ISO 9660 filesystem", 32 * KIB + 1, b"CD001"),
    ("a UDF filesystem", 32 * KIB + 1, b"BEA01"),
    ("a squashfs filesystem", 0, b"hsqs"),
    ("an erofs filesystem", KIB, b"\xe2\xe1\xf5\xe0"),
    ("a bcachefs filesystem or bcache device", 4 * KIB + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    ("a GFS2 or GFS filesystem", 64 * KIB, b"\x01\x16\x19\x70"),
    ("an OCFS2 filesystem", 8 * KIB, b"OCFSV2"),
    ("a JFS filesystem", 32 * KIB, b"JFS1"),
    ("a ReiserFS filesystem", 64 * KIB + 52, b"ReIsEr"),
    ("an HFS+ filesystem", KIB, b"H+\0\x04"),
    ("an HFSX filesystem", KIB, b"HX\0\x05"),
    ("an APFS container", 32, b"NXSB"),
    ("a VMFS volume", 2 * KIB * KIB, b"\x0d\xd0\x01\xc0"),
    ("a VMFS volume", KIB * KIB, b"\x0d\xd0\x01\xc0"),
    ("swap space", 4 * KIB - 10, b"SWAPSPACE2"),
    ("swap space", 4 * KIB - 10, b"SWAP-SPACE"),
    ("a suspended system image", 4 * KIB - 10, b"S1SUSPEND"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("a BitLocker volume", 3, b"-FVE-FS-"),
    ("an MD RAID member", 0, b"\xfc\x4e\x2b\xa9"),
    ("an MD RAID member", 4 * KIB, b"\xfc\x4e\x2b\xa9"),
    ("an MD RAID member", -8 * KIB, b"\xfc\x4e\x2b\xa9"),
    ("an MD RAID member", -64 * KIB, b"\xfc\x4e\x2b\xa9"),
    ("a DRBD device", -4 * KIB + 60, b"\x83\x74\x02\x6b"),
    ("a Ceph BlueStore device", 0, b"bluestore block device"),
    ("a ZFS pool member", 128 * KIB, b"\x0c\xb1\xba\0\0\0\0\0"),
    ("a ZFS pool member", 128 * KIB, b"\0\0\0\0\0\xba\xb1\x0c"),
    ("a GUID partition table", 512, b"EFI PART"),
    ("a GUID partition table", 4 * KIB, b"EFI PART"),
    ("a backup GUID partition table", -512, b"EFI PART"),
    ("a backup GUID partition table", -4 * KIB, b"EFI PART"),
    ("a qcow2 image", 0, b"QFI\xfb"),
    ("a VMDK image", 0, b"KDMV"),
    ("a VHDX image", 0, b"vhdxfile"),
    ("a partition table or boot sector", 510, b"\x55\xaa"),
];

/// What a device carries, in words; `None` when nothing is known on it.
///
/// # Errors
/// When it cannot be read: then nothing is known, which is not the same as nothing being there.
pub fn find_signature(device: &File, size: u64) -> std::io::Result<Option<&'static str>> {
    let mut found = None;
    for &(name, offset, magic) in SIGNATURES {
        let offset = if offset < 0 { size.checked_sub(offset.unsigned_abs()) } else { Some(offset as u64) };
        let Some(offset) = offset.filter(|offset| offset + magic.len() as u64 <= size) else { continue };
        let mut bytes = [0u8; 32];
        let bytes = &mut bytes[..magic.len()];
        device.read_exact_at(bytes, offset)?;
        if bytes == magic {
            found = Some(name);
            break;
        }
    }
    if found.is_some() {
        return Ok(found);
    }
    // The uberblocks of a pool made with larger sectors lie on a coarser grid behind the label's header.
    for index in 1..128u64 {
        let offset = 128 * 1024 + index * 1024;
        if offset + 8 > size {
            break;
        }
        let mut bytes = [0u8; 8];
        device.read_exact_at(&mut bytes, offset)?;
        if matches!(u64::from_le_bytes(bytes), 0x00ba_b10c) || u64::from_be_bytes(bytes) == 0x00ba_b10c {
            return Ok(Some("a ZFS pool member"));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signature_is_found_and_noise_is_not() {
        let size = 4 << 20;
        for &(name, offset, magic) in SIGNATURES {
            let file = tempfile::tempfile().unwrap();
            file.set_len(size).unwrap();
            assert_eq!(find_signature(&file, size).unwrap(), None);
            let at = if offset < 0 { size - offset.unsigned_abs() } else { offset as u64 };
            file.write_all_at(magic, at).unwrap();
            assert_eq!(find_signature(&file, size).unwrap(), Some(name), "at {offset}");
        }
        let tiny = tempfile::tempfile().unwrap();
        tiny.set_len(100).unwrap();
        assert_eq!(find_signature(&tiny, 100).unwrap(), None);
    }
}
