// An OpenID provider on loopback: node server.mjs PORT AUDIENCE dpop|plain. New signing keys at each start.
// Access tokens are at+jwt without an e-mail address, which stands in the ID token only. Any name logs in.
import { generateKeyPairSync } from 'node:crypto';
import Provider from 'oidc-provider';

const [port, audience, dpop] = process.argv.slice(2);
const jwk = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' });
const provider = new Provider(`http://127.0.0.1:${port}`, {
  jwks: { keys: [{ ...jwk, use: 'sig', alg: 'RS256' }] },
  clients: [
    {
      client_id: 'msfl',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      redirect_uris: ['http://127.0.0.1/'],
      response_types: ['code'],
      grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
    },
    {
      client_id: 'robot',
      client_secret: 'robot-secret-of-the-tests-0123456789',
      redirect_uris: [],
      response_types: [],
      grant_types: ['client_credentials'],
    },
  ],
  claims: { openid: ['sub'], email: ['email', 'email_verified'] },
  conformIdTokenClaims: false,
  findAccount: (ctx, id) => ({
    accountId: id,
    claims: () => ({ sub: id, email: `${id}@uni.example`, email_verified: true }),
  }),
  extraTokenClaims: () => ({ 'https://uni.example/organisation': 'uni.example' }),
  features: {
    clientCredentials: { enabled: true },
    deviceFlow: { enabled: true },
    dPoP: { enabled: dpop === 'dpop' },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: () => ({
        scope: '', audience, accessTokenTTL: 3600, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'RS256' } },
      }),
      useGrantedResource: () => true,
    },
  },
  pkce: { required: () => true },
  ttl: { AccessToken: 3600, ClientCredentials: 3600, IdToken: 3600, Grant: 3600, Session: 3600, Interaction: 600,
    DeviceCode: 600, RefreshToken: 86400 },
  cookies: { keys: ['of-the-tests'] },
});
provider.listen(Number(port), '127.0.0.1', () => process.stdout.write('ready\n'));
