package enrolment

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/tpm"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/device-agent/keystore"
)

// machineTPM is the TPM that has the key.
type machineTPM struct {
	*tpm.TPM
	key *tpm.Key
}

// required reports whether nothing but a TPM will do.
func (c Config) required() bool { return c.TPM != "" && c.TPM != TPMAuto && c.TPM != TPMOff }

// CheckTPM says what is wrong with a setting of Config.TPM, or returns nil.
func CheckTPM(setting string) error {
	switch setting {
	case "", TPMAuto, TPMRequire, TPMOff:
		return nil
	}
	for _, prefix := range []string{"/", "unix://", "tcp://"} {
		if strings.HasPrefix(setting, prefix) {
			return nil
		}
	}
	return fmt.Errorf("%q is none of auto, require, off and the address of a TPM, such as /dev/tpmrm0", setting)
}

// makeKey makes the draft's key, or takes the one that an earlier try made.
func (c Config) makeKey(draft *keystore.Draft) (crypto.Signer, *machineTPM, error) {
	address, found := c.TPM, true
	switch c.TPM {
	case TPMOff:
		found = false
	case TPMAuto, TPMRequire, "":
		address, found = tpm.Detect()
	}
	if !found {
		if c.required() {
			return nil, nil, errors.New("this machine shows no TPM 2.0, and one is required: is it switched on, and its driver loaded?")
		}
		c.Notice("the private key is a file: whoever can read it can be this device. There is no TPM to keep it, or none was wanted")
		key, err := draft.SoftwareKey()
		return key, nil, err
	}
	t, err := tpm.Open(address)
	if err != nil {
		return nil, nil, err
	}
	key, err := draft.TPMKey(t)
	if err != nil {
		return nil, nil, err
	}
	return key, &machineTPM{t, key}, nil
}

// enroll gets the first certificate: with the TPM's word for the key, if there is a TPM
// and the station asks for it.
func (x *exchange) enroll(ctx context.Context) (*x509.Certificate, error) {
	csr, err := x.csr()
	if err != nil {
		return nil, err
	}
	if x.tpm != nil {
		leaf, err := retry(ctx, x.config.Notice, func() (*x509.Certificate, error) { return x.attest(ctx, csr, x.client.EnrollAttested) })
		if err == nil {
			x.attested = true
			return leaf, nil
		}
		if x.config.required() || !errors.Is(err, est.ErrDenied) {
			return nil, err
		}
		x.config.Notice(fmt.Sprintf("%s did not take this TPM's word for the key, which so counts as one in a file, though it is in the TPM (%v)", x.config.host(), err))
	}
	return retry(ctx, x.config.Notice, func() (*x509.Certificate, error) { return x.client.Enroll(ctx, csr, x.key.Public()) })
}

// reenroll gets a certificate in place of the one there is: with the TPM's word for the
// new key, if the key is in one, so that the certificate goes on saying so. Vouched, it
// must have that. Otherwise a server that asks no TPM, or refuses this one for good,
// is asked without; what may go better the next time, such as a challenge that has expired, is
// an error, since a certificate that says less would be for long.
func (x *exchange) reenroll(ctx context.Context, vouched bool) (*x509.Certificate, error) {
	csr, err := x.csr()
	if err != nil {
		return nil, err
	}
	if x.tpm != nil {
		leaf, err := retry(ctx, x.config.Notice, func() (*x509.Certificate, error) { return x.attest(ctx, csr, x.client.ReenrollAttested) })
		if err == nil {
			x.attested = true
			return leaf, nil
		}
		if vouched || !declined(err) {
			return nil, err
		}
		x.config.Notice(fmt.Sprintf("%s did not take this TPM's word for the new key, whose certificate won't say that it is in the TPM (%v)", x.config.host(), err))
	}
	return retry(ctx, x.config.Notice, func() (*x509.Certificate, error) { return x.client.Reenroll(ctx, csr, x.key.Public()) })
}

// declined reports whether a server doesn't take this TPM's word, now and later.
func declined(err error) bool {
	answer, ok := errors.AsType[*est.ServerError](err)
	return ok && (errors.Is(err, est.ErrDenied) || answer.Status == http.StatusNotFound)
}

// attest is the exchange by which the TPM vouches for the key: its endorsement key and
// the key's certification go out, a challenge comes that only this TPM can open, and the
// answer is bound to the server that asked.
func (x *exchange) attest(ctx context.Context, csr []byte, finish func(context.Context, []byte, crypto.PublicKey) (*x509.Certificate, error)) (*x509.Certificate, error) {
	binding, err := x.client.ServerBinding(ctx)
	if err != nil {
		return nil, err
	}
	e, err := x.tpm.key.Enrol(csr)
	if err != nil {
		return nil, err
	}
	request, err := json.Marshal(e.Request())
	if err != nil {
		return nil, err
	}
	reply, err := x.client.Challenge(ctx, request)
	if err != nil {
		return nil, err
	}
	challenge, err := attestation.ParseChallenge(reply)
	if err != nil {
		return nil, err
	}
	answer, err := e.Answer(challenge, binding)
	if err != nil {
		return nil, err
	}
	message, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	return finish(ctx, message, x.key.Public())
}
