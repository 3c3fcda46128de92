package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// srkHandle is where the TCG's provisioning guidance has the storage primary
// persistent; systemd and most distributions put an ECC one there, some an RSA one. Then
// ours is at secondHandle, which the TCG's registry of handles leaves to storage keys.
const (
	srkHandle    = tpm2.TPMHandle(0x81000001)
	secondHandle = tpm2.TPMHandle(0x81000002)
)

// primary is the owner hierarchy's storage primary by the TCG's ECC SRK template, or an
// endorsement key by one of the templates for those. The TPM derives it from a seed that it never tells and that a clear replaces, so it is
// the same each time, its name tells TPMs apart, and nothing of it need be stored.
type primary struct {
	c         *conn
	handle    tpm2.TPMHandle
	name      tpm2.TPM2BName
	public    tpm2.TPMTPublic
	transient bool
}

// primary returns the persistent storage primary if there is one, which needs no
// owner password and saves some hundred milliseconds, else makes a transient one.
// With a name, only the primary of that name will do; none is ErrOtherTPM. The caller
// flushes it.
func (c *conn) primary(name []byte) (*primary, error) {
	wanted := func(p *primary) bool { return name == nil || bytes.Equal(name, p.name.Buffer) }
	for _, handle := range []tpm2.TPMHandle{srkHandle, secondHandle} {
		p, _, err := c.persistent(handle, tpm2.ECCSRKTemplate)
		if err != nil {
			return nil, err
		}
		if p != nil && wanted(p) {
			return p, nil
		}
	}
	p, err := c.transient(tpm2.TPMRHOwner, tpm2.ECCSRKTemplate)
	if err != nil {
		return nil, err
	}
	if !wanted(p) {
		p.flush()
		return nil, ErrOtherTPM
	}
	return p, nil
}

// storage returns the persistent storage primary, and makes it if there is none: a key
// file names its parent by a handle, so that other programs find it, too.
func (c *conn) storage() (*primary, error) {
	var free tpm2.TPMHandle
	for _, handle := range []tpm2.TPMHandle{srkHandle, secondHandle} {
		p, taken, err := c.persistent(handle, tpm2.ECCSRKTemplate)
		if p != nil || err != nil {
			return p, err
		}
		if !taken && free == 0 {
			free = handle
		}
	}
	if free == 0 {
		return nil, fmt.Errorf("%w: there are keys that aren't the TCG's ECC storage key at both %#x and %#x; remove one with tpm2_evictcontrol", ErrBusy, uint32(srkHandle), uint32(secondHandle))
	}
	p, err := c.transient(tpm2.TPMRHOwner, tpm2.ECCSRKTemplate)
	if err != nil {
		return nil, err
	}
	defer p.flush()
	_, err = tpm2.EvictControl{
		Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle:     &tpm2.NamedHandle{Handle: p.handle, Name: p.name},
		PersistentHandle: free,
	}.Execute(c)
	if err != nil {
		return nil, err
	}
	return &primary{c: c, handle: free, name: p.name, public: p.public}, nil
}

// transient makes a primary, which the caller flushes.
func (c *conn) transient(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (*primary, error) {
	created, err := tpm2.CreatePrimary{
		PrimaryHandle: hierarchy,
		InPublic:      tpm2.New2B(template),
	}.Execute(c)
	if err != nil {
		return nil, err
	}
	p, err := c.newPrimary(created.ObjectHandle, created.OutPublic)
	if err != nil {
		c.flush(created.ObjectHandle)
		return nil, err
	}
	p.transient = true
	return p, nil
}

// persistent returns the primary at handle, or nil if nothing of that template is
// there, and whether anything is.
func (c *conn) persistent(handle tpm2.TPMHandle, template tpm2.TPMTPublic) (p *primary, taken bool, err error) {
	reply, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(c)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	contents, err := reply.OutPublic.Contents()
	if err != nil {
		return nil, true, nil // of a kind that go-tpm doesn't know, so not of ours
	}
	like := *contents
	like.Unique = template.Unique
	if like.Type != template.Type || !bytes.Equal(tpm2.Marshal(like), tpm2.Marshal(template)) {
		return nil, true, nil
	}
	p, err = c.newPrimary(handle, reply.OutPublic)
	return p, true, err
}

// newPrimary computes the name from the public area rather than ask the TPM for it:
// sessions are salted to the key in that area, so a name that was once recorded and
// matches means that only the TPM of that time can read them, whoever sits on the bus.
func (c *conn) newPrimary(handle tpm2.TPMHandle, public tpm2.TPM2BPublic) (*primary, error) {
	contents, err := public.Contents()
	if err != nil {
		return nil, fmt.Errorf("a primary key's public area: %w", err)
	}
	name, err := tpm2.ObjectName(contents)
	if err != nil {
		return nil, fmt.Errorf("a primary key's name: %w", err)
	}
	return &primary{c: c, handle: handle, name: *name, public: *contents}, nil
}

// hidden returns a session for one command whose first parameter (tpm2.EncryptIn) or
// result (tpm2.EncryptOut) nobody on the bus between processor and TPM can read. Its
// authorization value is empty, as the primary's and the sealed key's are.
func (p *primary) hidden(what tpm2.AuthOption) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, sha256.Size, tpm2.Salted(p.handle, p.public), what)
}

// as returns the primary as the parent of one command under that session.
func (p *primary) as(session tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: p.handle, Name: p.name, Auth: session}
}

func (p *primary) flush() {
	if p.transient {
		p.c.flush(p.handle)
	}
}

// flush frees a handle's memory in the TPM. If that fails the TPM is gone or about
// to be reset, and the call at hand has failed for the same reason or is done.
func (c *conn) flush(handle tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: handle}.Execute(c)
}

// nameOf returns an object's name: nameAlg and the digest of its public area (Library
// Part 1, 16). All of ours are named by SHA-256.
func nameOf(public []byte) []byte {
	digest := sha256.Sum256(public)
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), digest[:]...)
}
