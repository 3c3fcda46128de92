package attestation

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// object is a TPM's key as its public area describes it, decoded and named by us.
type object struct {
	public tpm2.TPMTPublic
	key    *ecdsa.PublicKey
	name   []byte
}

// parseObject decodes a TPMT_PUBLIC of an ECDSA key on P-256 or P-384.
func parseObject(data []byte) (*object, error) {
	public, err := unmarshal[tpm2.TPMTPublic](data)
	if err != nil {
		return nil, err
	}
	if public.Type != tpm2.TPMAlgECC || public.NameAlg != tpm2.TPMAlgSHA256 {
		return nil, errors.New("it isn't an ECC key named by SHA-256")
	}
	parameters, err := public.Parameters.ECCDetail()
	if err != nil {
		return nil, err
	}
	point, err := public.Unique.ECC()
	if err != nil {
		return nil, err
	}
	curve, ok := map[tpm2.TPMECCCurve]elliptic.Curve{
		tpm2.TPMECCNistP256: elliptic.P256(),
		tpm2.TPMECCNistP384: elliptic.P384(),
	}[parameters.CurveID]
	if !ok {
		return nil, fmt.Errorf("its curve %#x is neither P-256 nor P-384", uint16(parameters.CurveID))
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(point.X.Buffer) > size || len(point.Y.Buffer) > size {
		return nil, errors.New("its point is larger than its curve")
	}
	uncompressed := make([]byte, 1+2*size)
	uncompressed[0] = 4
	new(big.Int).SetBytes(point.X.Buffer).FillBytes(uncompressed[1 : 1+size])
	new(big.Int).SetBytes(point.Y.Buffer).FillBytes(uncompressed[1+size:])
	key, err := ecdsa.ParseUncompressedPublicKey(curve, uncompressed)
	if err != nil {
		return nil, err
	}
	return &object{public: *public, key: key, name: nameOf(data)}, nil
}

// nameOf returns the name of an object of nameAlg SHA-256 (Library Part 1, 16).
func nameOf(public []byte) []byte {
	digest := sha256.Sum256(public)
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), digest[:]...)
}

// checkBorn demands what AK and device key have in common: the TPM made the private key
// itself (sensitiveDataOrigin), and it can leave neither the TPM (fixedTPM) nor its
// parent (fixedParent). A bit that the Library reserves has no meaning we could trust.
func (o *object) checkBorn() error {
	a := o.public.ObjectAttributes
	switch {
	case !a.FixedTPM:
		return errors.New("it can be exported: fixedTPM isn't set")
	case !a.FixedParent:
		return errors.New("it can be moved to another parent: fixedParent isn't set")
	case !a.SensitiveDataOrigin:
		return errors.New("it may have been imported: sensitiveDataOrigin isn't set")
	case !a.SignEncrypt:
		return errors.New("it can't sign: sign isn't set")
	case a.Decrypt:
		return errors.New("it can decrypt, too: decrypt is set")
	case a.EncryptedDuplication:
		return errors.New("encryptedDuplication is set, which contradicts fixedTPM")
	}
	return nil
}

// parseAK decodes the attestation key: restricted, so that it signs nothing that claims
// to be the TPM's own and isn't, and ECDSA with SHA-256 on P-256, as package tpm makes it.
func parseAK(data []byte) (*object, error) {
	o, err := parseObject(data)
	if err == nil {
		err = o.checkBorn()
	}
	if err != nil {
		return nil, refuse(BadAK, "the attestation key: %w", err)
	}
	if !o.public.ObjectAttributes.Restricted {
		return nil, refuse(BadAK, "the attestation key would sign anything: restricted isn't set")
	}
	parameters, err := o.public.Parameters.ECCDetail()
	if err != nil {
		return nil, refuse(BadAK, "the attestation key: %w", err)
	}
	scheme, err := parameters.Scheme.Details.ECDSA()
	if o.key.Curve != elliptic.P256() || parameters.Scheme.Scheme != tpm2.TPMAlgECDSA || err != nil || scheme.HashAlg != tpm2.TPMAlgSHA256 {
		return nil, refuse(BadAK, "the attestation key doesn't sign with ECDSA on P-256 and SHA-256")
	}
	return o, nil
}

// parseKey decodes the device key: an unrestricted one, for TLS has it sign what
// nobody's TPM made.
func parseKey(data []byte) (*object, error) {
	o, err := parseObject(data)
	if err == nil {
		err = o.checkBorn()
	}
	if err != nil {
		return nil, refuse(BadKey, "the device key: %w", err)
	}
	if o.public.ObjectAttributes.Restricted {
		return nil, refuse(BadKey, "the device key can't sign for TLS: restricted is set")
	}
	return o, nil
}

// certified checks that ak's TPM says of key that it holds it, and returns the
// statement that was signed along and the version of the TPM's firmware.
func certified(ak, key *object, certification, signature []byte) (statement []byte, firmware uint64, err error) {
	s, err := unmarshal[tpm2.TPMTSignature](signature)
	if err != nil {
		return nil, 0, refuse(BadCertification, "its signature: %w", err)
	}
	rs, err := s.Signature.ECDSA()
	if err != nil || s.SigAlg != tpm2.TPMAlgECDSA || rs.Hash != tpm2.TPMAlgSHA256 {
		return nil, 0, refuse(BadCertification, "it isn't signed with ECDSA and SHA-256")
	}
	// The signature first: what it isn't under needs no reading.
	digest := crypto.SHA256.New()
	digest.Write(certification)
	r, q := new(big.Int).SetBytes(rs.SignatureR.Buffer), new(big.Int).SetBytes(rs.SignatureS.Buffer)
	if !ecdsa.Verify(ak.key, digest.Sum(nil), r, q) {
		return nil, 0, refuse(BadCertification, "it isn't signed by this attestation key")
	}
	attest, err := unmarshal[tpm2.TPMSAttest](certification)
	if err != nil {
		return nil, 0, refuse(BadCertification, "it isn't a TPM's: %w", err)
	}
	if attest.Magic != tpm2.TPMGeneratedValue { // go-tpm lets it pass
		return nil, 0, refuse(BadCertification, "it isn't a TPM's: it begins with %#x, not with TPM_GENERATED", uint32(attest.Magic))
	}
	info, err := attest.Attested.Certify()
	if err != nil {
		return nil, 0, refuse(BadCertification, "the TPM signed something else: %#x", uint16(attest.Type))
	}
	if !bytes.Equal(info.Name.Buffer, key.name) {
		return nil, 0, refuse(BadCertification, "it is for another key")
	}
	return attest.ExtraData.Buffer, attest.FirmwareVersion, nil
}

// unmarshal decodes one TPM structure, and nothing after it or spelled otherwise than a
// TPM would: names are digests of these very bytes.
func unmarshal[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](data []byte) (*T, error) {
	v, err := tpm2.Unmarshal[T, P](data)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(*v), data) {
		return nil, errors.New("it isn't encoded as a TPM would")
	}
	return v, nil
}
