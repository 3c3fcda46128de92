package tpm

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/google/go-tpm/tpm2"
)

var (
	// ErrOtherTPM is returned by Unseal for what another TPM has sealed, or this one
	// before it was cleared. It will never open again here: make the secret anew. For a
	// key it is ErrSwapped or ErrCleared, which both are ErrOtherTPM, where that is known.
	ErrOtherTPM = errors.New("made by another TPM, or by this one before it was cleared")

	// ErrSwapped means that the key lives in another TPM: another board's file, or
	// somebody has changed the board's TPM. Enrol this one as a new device.
	ErrSwapped error = otherTPM("the key is in another TPM than the one of this machine; put that TPM or that disk back, or make a new key and enrol again")

	// ErrCleared means that this TPM was cleared and has forgotten the key for ever.
	ErrCleared error = otherTPM("this TPM was cleared since the key was made, so the key is lost; make a new one and enrol again")

	// ErrDamaged is returned for what isn't a sealed blob or key, or was altered.
	ErrDamaged = errors.New("the sealed data or key is damaged")

	// ErrPIN means that the key's PIN is wrong or missing. Each wrong one counts
	// towards ErrLockedOut.
	ErrPIN = errors.New("the PIN of the key is wrong or missing")

	// ErrChallenge means that a challenge can't be answered here, since it was made for
	// another TPM or another request.
	ErrChallenge = errors.New("the challenge is for another TPM, or for another request of this one")

	// ErrAccess means that this process or its knowledge of passwords isn't enough.
	ErrAccess = errors.New("no access to the TPM")

	// ErrBusy means that others hold the TPM or all of its memory; it may pass.
	ErrBusy = errors.New("the TPM is busy")

	// ErrLockedOut means that the TPM refuses all passwords for a while, after too
	// many wrong ones. Seal, Unseal and keys without a PIN don't depend on any.
	ErrLockedOut = errors.New("the TPM is locked out after too many wrong passwords; wait, or run tpm2_dictionarylockout --clear-lockout")
)

// otherTPM is an ErrOtherTPM that knows more.
type otherTPM string

func (e otherTPM) Error() string        { return string(e) }
func (e otherTPM) Is(target error) bool { return target == ErrOtherTPM }

// explain says in a person's words what err of a TPM, or of the way to it, means.
func explain(err error) error {
	is := func(targets ...error) bool {
		for _, target := range targets {
			if errors.Is(err, target) {
				return true
			}
		}
		return false
	}
	switch {
	case is(ErrOtherTPM, ErrDamaged, ErrAccess, ErrBusy, ErrLockedOut, ErrPIN, ErrChallenge): // said already
		return err
	case is(fs.ErrPermission):
		return fmt.Errorf("%w: %w; add this program's user to the device's group, which is mostly tss", ErrAccess, err)
	case is(syscall.EBUSY):
		return fmt.Errorf("%w: another program has it open; use /dev/tpmrm0, which is shared", ErrBusy)
	case is(tpm2.TPMRCLockout):
		return ErrLockedOut
	case is(tpm2.TPMRCAuthFail, tpm2.TPMRCBadAuth):
		return fmt.Errorf("%w: its owner hierarchy has a password; make the storage key persistent once, with tpm2_createprimary -C o -G ecc -P PASSWORD -c srk.ctx and tpm2_evictcontrol -P PASSWORD -c srk.ctx 0x81000001", ErrAccess)
	case is(tpm2.TPMRCHierarchy):
		return fmt.Errorf("%w: its owner hierarchy is disabled until the next boot", ErrAccess)
	case is(tpm2.TPMRCObjectMemory, tpm2.TPMRCSessionMemory, tpm2.TPMRCMemory, tpm2.TPMRCObjectHandles, tpm2.TPMRCSessionHandles):
		return fmt.Errorf("%w: its memory is full of what other programs left there (%w); use /dev/tpmrm0, or run tpm2_flushcontext -t -l -s", ErrBusy, err)
	case is(tpm2.TPMRCInitialize):
		return errors.New("it wasn't started; the firmware or the kernel does that, and for swtpm --flags not-need-init,startup-clear")
	case is(tpm2.TPMRCFailure):
		return fmt.Errorf("it is in failure mode until the power is cycled: %w", err)
	}
	return err
}

// aboutParameter reports whether the TPM found fault with what was in the command,
// not with its own state or with our rights.
func aboutParameter(err error) bool {
	if e, ok := errors.AsType[tpm2.TPMRC](err); ok {
		var detail tpm2.TPMFmt1Error
		if e.As(&detail) {
			parameter, _ := detail.Parameter()
			return parameter
		}
	}
	return false
}
