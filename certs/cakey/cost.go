package cakey

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
)

// Bounds of what a file may make its reader compute: beyond what any tool writes.
const (
	maxScryptMemory  = 256 << 20 // bytes: 128·N·r, RFC 7914 §2
	maxScryptWork    = 1 << 30   // 128·N·r·p
	maxPBKDF2Rounds  = 10_000_000
	scryptBlockBytes = 128
)

var errCost = errors.New("its parameters are not of this world")

// encrypted is EncryptedPrivateKeyInfo, RFC 5208 §6.
type encrypted struct {
	Algorithm struct {
		ID    asn1.ObjectIdentifier
		PBES2 struct { // RFC 8018 §A.4
			KDF    pkix.AlgorithmIdentifier
			Cipher pkix.AlgorithmIdentifier
		}
	}
	Data []byte
}

// affordable refuses a file whose key derivation would take the machine's memory, or
// for ever.
func affordable(der []byte) error {
	var e encrypted
	if rest, err := asn1.Unmarshal(der, &e); err != nil || len(rest) > 0 {
		return errors.Join(errCost, err)
	}
	kdf := e.Algorithm.PBES2.KDF
	switch {
	case kdf.Algorithm.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}): // scrypt, RFC 7914 §7.1
		var p struct {
			Salt    []byte
			N, R, P int64
			Length  int64 `asn1:"optional"`
		}
		if _, err := asn1.Unmarshal(kdf.Parameters.FullBytes, &p); err != nil {
			return err
		}
		if p.N < 2 || p.R < 1 || p.P < 1 || p.N > maxScryptMemory || p.R > maxScryptMemory || p.P > maxScryptWork ||
			scryptBlockBytes*p.N > maxScryptMemory/p.R || scryptBlockBytes*p.N*p.R > maxScryptWork/p.P {
			return errCost
		}
		return nil
	case kdf.Algorithm.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}): // PBKDF2, RFC 8018 §A.2
		var p struct {
			Salt   []byte
			Rounds int64
			Length int64                    `asn1:"optional"`
			PRF    pkix.AlgorithmIdentifier `asn1:"optional"`
		}
		if _, err := asn1.Unmarshal(kdf.Parameters.FullBytes, &p); err != nil {
			return err
		}
		if p.Rounds < 1 || p.Rounds > maxPBKDF2Rounds {
			return errCost
		}
		return nil
	}
	return errCost
}
