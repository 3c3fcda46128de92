package server

import (
	"crypto"
	"crypto/x509"
	"fmt"

	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/receipt"
)

// signReceipt signs a receipt with the key of the hub's issuing CA, as it lies in the
// hub's folder now, or, if that key is kept elsewhere or can't be opened, with that of the
// hub's own server certificate. Either leads to the root in ca.crt.
func (h *Hub) signReceipt(payload []byte) ([]byte, error) {
	key, chain, err := h.receiptSigner()
	if err != nil {
		return nil, fmt.Errorf("no key to sign a receipt with: %w", err)
	}
	return receipt.Sign(payload, chain, key)
}

func (h *Hub) receiptSigner() (crypto.Signer, []*x509.Certificate, error) {
	all, err := h.cas.List()
	if err != nil {
		return nil, nil, err
	}
	if key, err := h.cas.Key(all[0]); err == nil && key != nil {
		return key, []*x509.Certificate{all[0].Certificate}, nil
	}
	own, err := pemfile.ReadCertificates(h.serverFile(".crt"))
	if err != nil {
		return nil, nil, err
	}
	by := all[0].Certificate
	for _, ca := range all { // it may be by a former one
		if own[0].CheckSignatureFrom(ca.Certificate) == nil {
			by = ca.Certificate
		}
	}
	key, err := pemfile.ReadKey(h.serverFile(".key"))
	return key, []*x509.Certificate{own[0], by}, err
}
