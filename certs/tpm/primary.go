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
// persistent; systemd and most distributions put an ECC one there, some an RSA one.
const srkHandle = tpm2.TPMHandle(0x81000001)

// primary is the owner hierarchy's storage primary by the TCG's ECC SRK template. The
// TPM derives it from a seed that it never tells and that a clear replaces, so it is
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
	p, err := c.persistent()
	if err != nil {
		return nil, err
	}
	if p != nil && wanted(p) {
		return p, nil
	}
	created, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.TPMRHOwner,
		InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
	}.Execute(c)
	if err != nil {
		return nil, err
	}
	p, err = c.newPrimary(created.ObjectHandle, created.OutPublic)
	if err != nil {
		c.flush(created.ObjectHandle)
		return nil, err
	}
	p.transient = true
	if !wanted(p) {
		p.flush()
		return nil, ErrOtherTPM
	}
	return p, nil
}

// persistent returns the primary at srkHandle, or nil if nothing of our template is there.
func (c *conn) persistent() (*primary, error) {
	reply, err := tpm2.ReadPublic{ObjectHandle: srkHandle}.Execute(c)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p, err := c.newPrimary(srkHandle, reply.OutPublic)
	if err != nil {
		return nil, err
	}
	like := p.public
	like.Unique = tpm2.ECCSRKTemplate.Unique
	if !bytes.Equal(tpm2.Marshal(like), tpm2.Marshal(tpm2.ECCSRKTemplate)) {
		return nil, nil
	}
	return p, nil
}

// newPrimary computes the name from the public area rather than ask the TPM for it:
// sessions are salted to the key in that area, so a name that was once recorded and
// matches means that only the TPM of that time can read them, whoever sits on the bus.
func (c *conn) newPrimary(handle tpm2.TPMHandle, public tpm2.TPM2BPublic) (*primary, error) {
	contents, err := public.Contents()
	if err != nil {
		return nil, fmt.Errorf("the storage key's public area: %w", err)
	}
	return &primary{
		c:      c,
		handle: handle,
		name:   tpm2.TPM2BName{Buffer: nameOf(tpm2.Marshal(*contents))},
		public: *contents,
	}, nil
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
