package server

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/receipt"
)

// signReceipt signs a receipt with the key of the hub's issuing CA, as it lies in the
// hub's folder now, or, if that key is kept elsewhere, with that of the hub's own server
// certificate. Either leads to the root in ca.crt.
func (h *Hub) signReceipt(payload []byte) ([]byte, error) {
	key, chain, err := h.receiptSigner()
	if err != nil {
		return nil, fmt.Errorf("no key to sign a receipt with: %w", err)
	}
	return receipt.Sign(payload, chain, key)
}

func (h *Hub) receiptSigner() (crypto.Signer, []*x509.Certificate, error) {
	folder := filepath.Join(h.config.Dir, "ca")
	operational, err := pemfile.ReadCertificates(filepath.Join(folder, "operational.crt"))
	if err != nil {
		return nil, nil, err
	}
	key, err := pemfile.ReadKey(filepath.Join(folder, "operational.key"))
	if err == nil {
		return key, operational[:1], nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	own, err := pemfile.ReadCertificates(h.serverFile(".crt"))
	if err != nil {
		return nil, nil, err
	}
	key, err = pemfile.ReadKey(h.serverFile(".key"))
	return key, []*x509.Certificate{own[0], operational[0]}, err
}
